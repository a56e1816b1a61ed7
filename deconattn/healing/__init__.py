"""Healing of a model that has new layers: it begins with trained weights, and learns from the model that had them.

:mod:`.source` reads trained weights of any kind, any part of them, and says what a model takes of them.
:mod:`.freezing` says which parameters keep theirs, and how long. :mod:`.teacher` is the model that is learnt from,
:mod:`.objectives` what of it, and :mod:`.distillation` when.
"""
