"""What `audiollm validate` finds wrong with training data."""
