"""Whole training steps: how fast, how much memory, what losses."""
