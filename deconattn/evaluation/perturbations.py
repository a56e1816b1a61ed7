"""Texts made harder to read: typos, shuffled words, dropped tokens; each a function of the text and a seed alone."""

import hashlib
import random
import re
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deconattn.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SEED = 0
SHARE = 0.1


@dataclass(frozen=True)
class Perturbation:
    """A change of a share of a text's units, rounded, at least one of them.

    - `typos`, of letters: each is doubled, left out, replaced by another, or changes places with the next character.
    - `word-shuffle`, of words, at least two: they change places with one another; white space stays.
    - `token-drop`, of the model's tokens: their characters are left out.
    """

    kind: str
    share: float

    @property
    def label(self) -> str:
        """Name and share, in words."""
        return f"{self.kind}, {100 * self.share:g} % of {UNITS[self.kind]}"

    def __call__(self, text: str, tokenizer: "PreTrainedTokenizerBase") -> str:
        """Change a text; the same one is always changed alike."""
        key = f"{SEED}\0{self.kind}\0{self.share!r}\0{text}"
        draws = random.Random(hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest())
        if self.kind == "typos":
            return _typos(text, self.share, draws)
        if self.kind == "word-shuffle":
            return _shuffled(text, self.share, draws)
        return _dropped(text, self.share, draws, tokenizer)


UNITS = {"typos": "letters", "word-shuffle": "words", "token-drop": "tokens"}


def perturbations(words: Sequence[str]) -> list[Perturbation]:
    """Parse `typos`, `word-shuffle` and `token-drop`, each with `=SHARE` where it is not a tenth.

    Raises:
        UserError: another name, a share that is not above 0 and at most 1, or a name given twice.
    """
    found: list[Perturbation] = []
    for word in words:
        kind, given, share = word.partition("=")
        if kind not in UNITS:
            raise UserError(f"--perturb {word}: there is no {kind!r}: choose from {', '.join(UNITS)}")
        try:
            number = float(share) if given else SHARE
        except ValueError:
            number = -1.0
        if not 0 < number <= 1:
            raise UserError(f"--perturb {word}: give a share of {UNITS[kind]} above 0 and at most 1, as in {kind}=0.1")
        if kind in {one.kind for one in found}:
            raise UserError(f"--perturb: {kind} is given twice: give it once")
        found.append(Perturbation(kind, number))
    return found


def _count(share: float, units: int) -> int:
    return min(units, max(1, round(share * units)))


def _typos(text: str, share: float, draws: random.Random) -> str:
    places = [place for place, letter in enumerate(text) if letter.isalpha()]
    characters = list(text)
    for place in sorted(draws.sample(places, _count(share, len(places)) if places else 0)):
        characters[place] = _TYPOS[draws.randrange(len(_TYPOS))](characters, place, draws)
    return "".join(characters)


def _doubled(characters: list[str], place: int, draws: random.Random) -> str:
    return characters[place] * 2


def _left_out(characters: list[str], place: int, draws: random.Random) -> str:
    return ""


def _another(characters: list[str], place: int, draws: random.Random) -> str:
    old = characters[place]
    new = draws.choice([letter for letter in string.ascii_lowercase if letter != old.lower()])
    return new.upper() if old.isupper() else new


def _swapped(characters: list[str], place: int, draws: random.Random) -> str:
    if place + 1 == len(characters) or characters[place + 1] == characters[place]:
        return _another(characters, place, draws)
    characters[place + 1], own = characters[place], characters[place + 1]
    return own


_TYPOS: tuple[Callable[[list[str], int, random.Random], str], ...] = (_doubled, _left_out, _another, _swapped)


def _shuffled(text: str, share: float, draws: random.Random) -> str:
    pieces = re.split(r"(\s+)", text)  # words, which may be empty at the ends, and white space by turns
    places = [place for place in range(0, len(pieces), 2) if pieces[place]]
    if len(places) < 2:
        return text
    chosen = draws.sample(places, max(2, _count(share, len(places))))
    moved = [pieces[place] for place in chosen]
    for place, word in zip(chosen, [*moved[1:], moved[0]], strict=True):  # so that each one moves
        pieces[place] = word
    return "".join(pieces)


def _dropped(text: str, share: float, draws: random.Random, tokenizer: "PreTrainedTokenizerBase") -> str:
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    spans = encoded["offset_mapping"]
    gone = set[int]()
    for place in draws.sample(range(len(spans)), _count(share, len(spans)) if spans else 0):
        gone.update(range(*spans[place]))
    return "".join(character for place, character in enumerate(text) if place not in gone)
