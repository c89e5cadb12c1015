"""Corpora turned into training examples: `audiollm prepare`, `audiollm validate`, and the speech that ships with the package."""
