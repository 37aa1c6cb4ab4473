"""Features of crops, and the table that carries them."""
