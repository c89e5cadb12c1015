"""Inference: questions about recordings, answered."""
