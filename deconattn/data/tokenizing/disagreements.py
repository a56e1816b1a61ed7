"""Texts and characters on which two implementations of a tokenizer may disagree."""

import unicodedata
from collections.abc import Sequence
from functools import cache

import numpy as np
import numpy.typing as npt

_CODE_POINTS = 0x110000
_NEVER_USED = range(0x40000, 0xE0000)
"""Planes without a single character: no edition says anything of them."""
_CORRECTED = 0x0EBA
"""The one old character (Lao) that has another combining class since Unicode 12."""
_FIRST = 0x7C0
"""First code point that may be unsettled: below it nothing has been added or changed since Unicode 7."""
_FIRST_LEAD = 0xDF  # of U+07C0 in UTF-8
AWKWARD_TEXTS = (
    "",
    " ",
    "\n",
    "\ufeffmark\u0338 of the order",
    "\u0301starts with an accent",
    "e\u0301 a\u0323\u0307 \u1100\u1161\u11a8 \ufb01 \u2460 \u212b \u0344 \u0958",
    "\U0001f917\U0001f469\u200d\U0001f469\u200d\U0001f467 \u2764\ufe0f \U0001f1e9\U0001f1ea \U0001d4b3",
    "\U0010ffff \ue000 \U0001f9ff\U0001f3fd #\ufe0f\u20e3",
    "lines\r\nof\r\rWindows\n\n\r\n\t\ttabs\t \t\x0b\x0c\x85\u2028\u2029",
    *(character * count for character in " \n\t.-=a\u3042" for count in (2, 3, 7, 16, 33, 100)),
    "x" + " " * 9 + "y" + " " * 40 + "\n" + " " * 4 + "z ",
    "0123456789" * 20 + " 1 22 333 4444 55555 1,234.5e-6 \u0664\u0665\u0666 \u00b2\u00bd\u2167",
    "\x00\x01\x07\x1b\x7f\u0080\u00ad\u200b\u200e\u2060\ufffd\ufffe",
    "\u6771\u4eac\u90fd\u306e\u5929\u6c17\u3001\u4eca\u65e5\u306f\u3002\uff21\uff11",
    "\ud55c\uad6d\uc5b4 \u0e20\u0e32\u0e29\u0e32 \u10d8\u10d0",
    "\u0627\u0644\u0639\u0631\u0628\u064a\u0651\u0629 \u05e2\u05b4\u05d1\u05e8\u05b4\u05d9\u05ea",
    "\u0939\u093f\u0928\u094d\u0926\u0940 \u0995\u09cb\u09be \u0b95\u0bca",
    "\u017dlu\u0165ou\u010dk\u00fd k\u016f\u0148, \u0429\u0418\u0422, \u03b5\u03bb\u03bb\u03b7\u03bd\u03b9\u03ba\u03ac",
    "\u0130\u0131\u017f\u1e9e\u01c5\u00df\u00aa\u02b0",
    "it's IT'S we'll WE'Ll I'd'VE 's 't \u2019s can't\u2019ve 'sx x's' 'S'\u017f",
    "\u00a0no\u00a0break\u3000wide\u2009thin\u202fnarrow\u2581low\u2581\u2581line",
    'def f(x: int) -> str:\n    return f"{x!r:>10}" if x != 0 else ""  # \u00fc\n\n\n\tclass A(B): ...',
    "https://example.org/a_b-c?d=e&f=%20#g <b>&amp;</b> $\\frac{1}{2}$ C:\\x\\y a/b//c @me #tag ^~`|",
    "camelCaseXMLHttpRequest snake_case SCREAMING_CASE a1b2c3 \u00e4\u00d6\u00fc",
    "<s> </s> <unk> <0x0A> <0x41> [SEP] <|endoftext|> <|im_end|>",
    "a" * 20_000,
    "\u00e9" * 5_000 + "ab" * 5_000,
    "supercalifragilistic" * 500,
)


def with_added_tokens(tokens: Sequence[str]) -> list[str]:
    """Texts with each token in words, between spaces, repeated, cut short, and before marks that may merge with it."""
    texts = []
    for token in tokens:
        texts += [token, f"a{token}b", f" x  {token}  y ", f"{token}{token}\n{token}", f"{token}\u0338\u0301"]
        texts += [token[:-1], token.upper(), token.lower(), f"<{token}>"]
    return texts


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
    """Mask of unsettled code points, `[0x110000]`."""
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
