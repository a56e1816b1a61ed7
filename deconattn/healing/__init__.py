"""Healing of a model that has new layers: it begins with trained weights, and learns from the model that had them.

:mod:`.source` reads trained weights of any kind, any part of them, and says what a model takes of them.
"""
