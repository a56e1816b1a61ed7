"""Batches out of a packed corpus."""
