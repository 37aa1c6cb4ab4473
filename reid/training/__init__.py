"""Trainer, schedules, checkpoints, many processes."""
