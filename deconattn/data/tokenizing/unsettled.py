"""Characters whose Unicode properties depend on the edition, so that two libraries may treat them differently."""

import unicodedata
from functools import cache

import numpy as np
import numpy.typing as npt

_CODE_POINTS = 0x110000
_NEVER_USED = range(0x40000, 0xE0000)
"""Planes without a single character: no edition says anything of them."""
_CORRECTED = 0x0EBA
"""The one old character (Lao) that has another combining class since Unicode 12."""
_FIRST = 0x7C0
"""What is below is settled: nothing has been added or changed there since Unicode 7."""
_FIRST_LEAD = 0xDF  # of U+07C0 in UTF-8


def has_unsettled(content: bytes) -> bool:
    """Whether a UTF-8 text holds characters that a library with older or newer Unicode tables may treat otherwise.

    Those are the marks and compositions that came after Unicode 3.2 (older ones keep their normal form, by
    Unicode's own promise) and what this Python does not know at all.
    """
    if content.isascii():
        return False
    units = np.frombuffer(content + bytes(3), dtype=np.uint8)
    leads = np.flatnonzero(units >= _FIRST_LEAD)
    if not len(leads):
        return False
    lead, second, third, fourth = (units[leads + offset].astype(np.uint32) for offset in range(4))
    points = np.where(
        lead < 0xE0,
        (lead & 0x1F) << 6 | (second & 0x3F),
        np.where(
            lead < 0xF0,
            (lead & 0x0F) << 12 | (second & 0x3F) << 6 | (third & 0x3F),
            (lead & 0x07) << 18 | (second & 0x3F) << 12 | (third & 0x3F) << 6 | (fourth & 0x3F),
        ),
    )
    return bool(_table()[points].any())


@cache
def _table() -> npt.NDArray[np.bool_]:
    """Of each code point, whether it is unsettled, `[0x110000]`."""
    table = np.zeros(_CODE_POINTS, dtype=bool)
    old = unicodedata.ucd_3_2_0
    for start, stop in ((0, _NEVER_USED.start), (_NEVER_USED.stop, 0xE0200)):
        for point in range(start, stop):
            character = chr(point)
            category = unicodedata.category(character)
            if category == "Cn":
                table[point] = True
            elif old.category(character) == "Cn":
                decomposition = unicodedata.decomposition(character)
                parts = [] if decomposition.startswith("<") else [int(part, 16) for part in decomposition.split()]
                if category[0] == "M" or parts:
                    table[[point, *parts]] = True
    table[_CORRECTED] = True
    table[:_FIRST] = False
    return table
