"""How networks are trained: victims, defenses, several tasks at once; and how they are scored."""
