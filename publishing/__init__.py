"""Model cards and the Hub: what a checkpoint says of itself, and what of its folder is uploaded."""
