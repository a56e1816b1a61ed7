"""Damage to stored models: one file made wrong in one way, drawn at random from a seed.

What a file system, a copy, an editor or somebody else can do to a file: bytes, its kind, its rights, and in JSON files
types, names and depth. :meth:`Damage.sealed` asks for checksums that fit the damage, so that only the schema can tell.
"""

import json
import os
import random
import shutil
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deconattn.checkpoint.manifest import MANIFEST, read_manifest, write_manifest

WRONG: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    10**30,
    1.5,
    float("nan"),
    "",
    "x",
    "../../x",
    "a\0b",
    "\ud800",
    [],
    ["x"],
    [[]],
    {},
    {"x": 1},
)


def flip(path: Path, dice: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
    path.write_bytes(content)


def flip_early(path: Path, dice: random.Random) -> None:
    """In the header of a safetensors file."""
    content = bytearray(path.read_bytes())
    content[dice.randrange(min(len(content), 200))] ^= 1 << dice.randrange(8)
    path.write_bytes(content)


def truncate(path: Path, dice: random.Random) -> None:
    os.truncate(path, dice.randrange(path.stat().st_size))


def empty(path: Path, dice: random.Random) -> None:
    path.write_bytes(b"")


def lengthen(path: Path, dice: random.Random) -> None:
    path.write_bytes(path.read_bytes() + dice.randbytes(9))


def garbage(path: Path, dice: random.Random) -> None:
    path.write_bytes(dice.randbytes(dice.choice([1, 8, 300])))


def zeros(path: Path, dice: random.Random) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def missing(path: Path, dice: random.Random) -> None:
    path.unlink()


def folder(path: Path, dice: random.Random) -> None:
    path.unlink()
    path.mkdir()


def fifo(path: Path, dice: random.Random) -> None:
    path.unlink()
    os.mkfifo(path)


def a_socket(path: Path, dice: random.Random) -> None:
    path.unlink()
    here = os.getcwd()
    os.chdir(path.parent)  # names of sockets are short
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


def loop(path: Path, dice: random.Random) -> None:
    path.unlink()
    path.symlink_to(path.name)


def endless(path: Path, dice: random.Random) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def dangling(path: Path, dice: random.Random) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def unreadable(path: Path, dice: random.Random) -> None:
    path.chmod(0)


def nested(path: Path, dice: random.Random) -> None:
    opening = dice.choice(['{"flags":', "["])
    path.write_text(opening * 100_000)


def nested_inside(path: Path, dice: random.Random) -> None:
    text = path.read_text().rstrip()
    path.write_text(f'{text[:-1]}, "model": {"[" * 50_000}{"]" * 50_000}}}')


def no_object(path: Path, dice: random.Random) -> None:
    path.write_text(dice.choice(["[]", "null", "7", '"x"', "[[]]", "{}", "NaN", "\ufeff{}"]))


def wrong_value(path: Path, dice: random.Random) -> None:
    content = json.loads(path.read_text())
    holder, key = dice.choice(list(_places(content)))
    holder[key] = dice.choice(WRONG)
    path.write_text(json.dumps(content))


def no_key(path: Path, dice: random.Random) -> None:
    content = json.loads(path.read_text())
    holder, key = dice.choice([(holder, key) for holder, key in _places(content) if isinstance(holder, dict)])
    del holder[key]
    path.write_text(json.dumps(content))


def more_keys(path: Path, dice: random.Random) -> None:
    content = json.loads(path.read_text())
    holder, _ = dice.choice([(holder, key) for holder, key in _places(content) if isinstance(holder, dict)])
    holder["surplus"] = dice.choice(WRONG)
    path.write_text(json.dumps(content))


def _places(content: Any) -> Any:
    """Every (container, key) of a JSON value; of long ones some."""
    pairs = list(content.items() if isinstance(content, dict) else enumerate(content))
    for key, value in pairs if len(pairs) < 100 else pairs[:20]:
        yield content, key
        if isinstance(value, dict | list) and value:
            yield from _places(value)


BYTES = (flip, flip_early, truncate, empty, lengthen, garbage, zeros)
KINDS = (missing, folder, fifo, a_socket, loop, endless, dangling, unreadable)
JSON = (nested, nested_inside, no_object, wrong_value, wrong_value, wrong_value, no_key, more_keys)
HARMLESS_TO_ROOT = (unreadable,)


@dataclass(frozen=True)
class Damage:
    """What is done to which file of a folder; `sealed` is a step folder whose checksums are made to fit."""

    file: str
    how: Callable[[Path, random.Random], None]
    seed: int
    sealed: str | None = None

    def __str__(self) -> str:
        return f"{self.how.__name__} of {self.file}, seed {self.seed}{', sealed again' if self.sealed else ''}"

    def do(self, root: Path) -> None:
        progress = read_manifest(root / self.sealed).progress if self.sealed else None
        self.how(root / self.file, random.Random(self.seed))
        if self.sealed and progress is not None:
            (root / self.sealed / MANIFEST).unlink()
            with suppress(OSError, ValueError):  # what cannot be read has no checksum
                write_manifest(root / self.sealed, progress)


def draw(root: Path, files: list[str], cases: int, seed: int, step: str | None = None) -> list[Damage]:
    """Draw damages of the named files below `root`; of those in the step folder `step`, every other sealed again."""
    dice = random.Random(seed)
    drawn = []
    for number in range(cases):
        file = dice.choice(files)
        hows = (*BYTES, *KINDS, *(3 * JSON if file.endswith(".json") else ()))
        how = dice.choice(hows)
        inside = step is not None and file.startswith(step) and not file.endswith(MANIFEST)
        sealed = step if inside and number % 2 and how in (*JSON, *BYTES) else None
        drawn.append(Damage(file, how, dice.randrange(10**6), sealed))
    return drawn


def copy(source: Path, target: Path) -> Path:
    """Copy a folder over what a case has left at `target`."""
    if target.exists():
        shutil.rmtree(target)
    return Path(shutil.copytree(source, target))
