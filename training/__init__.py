"""Training: examples to batches, the feature cache, the CTC warm start, the Trainer and its command line."""
