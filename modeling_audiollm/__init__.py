"""AudioLLM."""
