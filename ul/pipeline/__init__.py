"""Notebooks as stages, the site, what is written into README, and the command line."""
