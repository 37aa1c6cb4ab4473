"""Slow, obvious versions of what the package does fast. Loops on purpose; written from the definitions."""
