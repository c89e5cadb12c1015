"""Speech made of text, and responses written by a language model."""
