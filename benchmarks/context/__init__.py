"""Sequences that several ranks share: bytes that they send, and memory of each."""
