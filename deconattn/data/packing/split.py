"""Which documents are held out for validation: decided by a document's number alone."""

import re
from typing import overload

import numpy as np
import numpy.typing as npt

from deconattn.data.loading.sampler import mix

_SEED = mix(0x5EED)


@overload
def is_validation(number: int, fraction: float) -> bool: ...


@overload
def is_validation(number: npt.NDArray[np.uint64], fraction: float) -> npt.NDArray[np.bool_]: ...


def is_validation(number: int | npt.NDArray[np.uint64], fraction: float) -> bool | npt.NDArray[np.bool_]:
    """Whether document `number` (0-based, in reading order; or a uint64 array `[n]`) is held out.

    True with probability `fraction`. The caller sees to it that of two documents or more neither split stays empty.
    """
    threshold = int(fraction * 2**64)
    if isinstance(number, np.ndarray):
        return mix(number ^ np.uint64(_SEED)) < np.uint64(threshold)
    return mix(number ^ _SEED) < threshold


def cut_document(text: str, fraction: float) -> list[str]:
    """Cut the only document of a corpus in two at white space, the second about `fraction` of it.

    Joined again the two are the text. It stays whole where there is nothing to cut.
    """
    body = len(text.rstrip())
    target = min(max(round(body * (1 - fraction)), 1), body - 1)
    spaces = [match.start() for match in re.finditer(r"\s+", text[:body]) if match.start() > 0]
    if spaces:
        before = [space for space in spaces if space <= target]
        target = before[-1] if before else spaces[0]
    return [text[:target], text[target:]] if target > 0 else [text]
