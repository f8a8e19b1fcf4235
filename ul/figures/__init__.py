"""Figures from tables and arrays; no torch."""
