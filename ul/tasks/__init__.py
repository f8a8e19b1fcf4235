"""The tasks of the cross-task study and their labels."""
