"""Training: the DeepSpeed engine behind one door, the loop, saving and resuming, metrics."""
