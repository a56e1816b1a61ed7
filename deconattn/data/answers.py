"""Marks on tokens that are read and not learnt: in a corpus of conversations, all that is no answer.

A mark is the highest bit of a uint32 id, which no vocabulary comes near. So it lies where the token lies, and goes
along where documents are shuffled, cut into samples or copied to another corpus.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

MARK = 2**31
"""The bit of a token that is not learnt."""


def plain(ids: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return ids without marks, in their dtype."""
    return ids & ids.dtype.type(MARK - 1) if ids.dtype != np.uint16 else ids


def marked(ids: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    """Return ids with a mark on each."""
    return ids | np.uint32(MARK)
