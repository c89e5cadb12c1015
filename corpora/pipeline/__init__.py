"""What `audiollm prepare` does with every corpus: clips written once, then filtered into examples."""
