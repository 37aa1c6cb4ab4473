"""The made world: people seen by several cameras, from a seed."""
