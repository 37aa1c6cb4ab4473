"""Errors, whole-file writes, console output and process groups: what every package uses."""
