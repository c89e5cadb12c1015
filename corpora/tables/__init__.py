"""Datasets of the Hub and on disk, and the table of ready corpora."""
