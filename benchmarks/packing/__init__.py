"""Texts into a packed corpus, and corpora to do it with."""
