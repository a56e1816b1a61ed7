"""Text generation from caches, a token at a time."""
