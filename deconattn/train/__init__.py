"""Training: the DeepSpeed engine behind one door, the loop, checkpoints, metrics, and the way in from a shell."""
