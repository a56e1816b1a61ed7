"""Training: the wrapped DeepSpeed engine, the loop, saving and resuming, metrics."""
