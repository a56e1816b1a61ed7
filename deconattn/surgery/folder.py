"""The folder of a measurement and its searches.

    OUT/
        request.json              what was asked for so far, and of which model and text
        cells/LAYER-VARIANT.json  the losses with one replacement, or why there are none; .safetensors: its weights
        cells/LAYER-VARIANT-heads.json  the losses with one head replaced
        cells/own.json            the losses of the model itself
        hybrids/DIGEST.json       the losses of several replacements together
        locks/                    who works on which shard
        results.json, results.parquet, index.html, found.safetensors

Each file appears whole, by a rename, so that a process may end at any moment and the next goes on with what is there.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from deconattn import durable, locks
from deconattn.errors import UserError
from deconattn.json_files import read_bytes, read_json
from deconattn.mixers.plugins import code_digest
from deconattn.surgery.request import Request

FORMAT = 1
REQUEST = "request.json"
FOUND = "found.safetensors"
GROWS = ("variants", "heads")
"""Fields of the request by which a folder's table can grow."""
Stored = TypeVar("Stored")


@dataclass(frozen=True)
class Own:
    """Losses of the model itself, nats a token, a sequence each."""

    held_out: list[float]
    tested: list[float]


@dataclass(frozen=True)
class Cell:
    """What came of a variant in one layer's place.

    Attributes:
        losses: of the held-out sequences, nats a token; None: it failed.
        error: the mean squared error of its output on them, as a part of the output's mean square.
        seconds: of fitting and measuring.
    """

    losses: list[float] | None
    error: float | None = None
    seconds: float = 0.0
    reason: str | None = None


@dataclass(frozen=True)
class Heads:
    """What came of a variant's heads in the place of one layer's, one at a time.

    Attributes:
        losses: by head and held-out sequence, nats a token; None: it failed.
    """

    losses: list[list[float]] | None
    seconds: float = 0.0
    reason: str | None = None


@dataclass(frozen=True)
class SearchFolder:
    """The places in the folder `out`."""

    out: Path

    def lock(self, shard: str) -> Path:
        return self.out / "locks" / f"shard-{shard.replace('/', '-of-')}"

    @property
    def common_lock(self) -> Path:
        """Lock of the files that every shard writes: the request, the hybrids and the results."""
        return self.out / "locks" / "results"

    def cell(self, layer: int, variant: str) -> Cell | None:
        """Return a cell; None: it is still to be measured, or its file cannot be read."""
        return self._read(self._cell(layer, variant), Cell)

    def record(self, layer: int, variant: str, cell: Cell, weights: Mapping[str, Tensor] | None = None) -> None:
        """Write a cell; its weights first, so that a cell that is there has them."""
        path = self._cell(layer, variant)
        path.parent.mkdir(parents=True, exist_ok=True)
        if weights is not None:
            held = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
            durable.write_bytes(path.with_suffix(".safetensors"), save(held))
        durable.write_json(path, {"layer": layer + 1, "variant": variant, "cell": asdict(cell)})

    def heads(self, layer: int, variant: str) -> Heads | None:
        """Return what came of a variant's heads; None: still to be measured."""
        return self._read(self._heads(layer, variant), Heads)

    def record_heads(self, layer: int, variant: str, heads: Heads) -> None:
        path = self._heads(layer, variant)
        path.parent.mkdir(parents=True, exist_ok=True)
        durable.write_json(path, {"layer": layer + 1, "variant": variant, "cell": asdict(heads)})

    def forget(self, layer: int, variant: str) -> None:
        """Forget a cell and its heads where they failed, so that they are measured again."""
        for path, found in (
            (self._cell(layer, variant), self.cell(layer, variant)),
            (self._heads(layer, variant), self.heads(layer, variant)),
        ):
            if found is not None and found.losses is None:
                path.unlink()

    def weights(self, layer: int, variant: str) -> dict[str, Tensor]:
        """Return the weights of a fitted mixer, by their names in it.

        Raises:
            UserError: the file cannot be read.
        """
        path = self._cell(layer, variant).with_suffix(".safetensors")
        try:
            return load(read_bytes(path))
        except (OSError, SafetensorError) as error:
            remedy = f"remove {path.with_suffix('.json').name}, and it is fitted again"
            raise UserError(f"{path} cannot be read ({error}): {remedy}") from error

    def own(self) -> Own | None:
        """Return the losses of the model itself; None: not measured yet."""
        return self._read(self.out / "cells" / "own.json", Own)

    def record_own(self, own: Own) -> None:
        path = self.out / "cells" / "own.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        durable.write_json(path, {"cell": asdict(own)})

    def hybrid(self, variants: Sequence[str], sequences: str) -> list[float] | None:
        """Return the losses of a hybrid, of the `held_out` or the `tested` sequences; None: not measured yet."""
        return self._read(self._hybrid(variants, sequences), list[float])

    def record_hybrid(self, variants: Sequence[str], sequences: str, losses: list[float]) -> None:
        path = self._hybrid(variants, sequences)
        path.parent.mkdir(parents=True, exist_ok=True)
        durable.write_json(path, {"variants": list(variants), "sequences": sequences, "cell": losses})

    def _cell(self, layer: int, variant: str) -> Path:
        return self.out / "cells" / f"{layer + 1:03}-{variant}.json"

    def _heads(self, layer: int, variant: str) -> Path:
        return self.out / "cells" / f"{layer + 1:03}-{variant}-heads.json"

    def _hybrid(self, variants: Sequence[str], sequences: str) -> Path:
        digest = hashlib.sha256(",".join(variants).encode()).hexdigest()[:16]
        return self.out / "hybrids" / f"{digest}-{sequences}.json"

    def _read(self, path: Path, kind: type[Stored]) -> Stored | None:
        try:
            found: Stored = TypeAdapter(kind).validate_python(read_json(path)["cell"])
            return found
        except (OSError, ValueError, KeyError, TypeError):
            return None


@dataclass(frozen=True)
class Asked:
    """What a folder was asked for.

    Attributes:
        fingerprint: of the model and its text.
        variants: the model's own, a layer each.
        code: digests of the plugins' files, by name.
    """

    model: str
    label: str
    request: Request
    fingerprint: str
    variants: tuple[str, ...]
    code: dict[str, str]


def merge_request(
    folder: SearchFolder, model: Path, label: str, given: Request, fingerprint: str, variants: Sequence[str]
) -> Asked:
    """Write what the folder is asked for with `given`, and return it: all that it was asked for before, too.

    Raises:
        UserError: the folder was begun with another model, text, setting or code, or by a later version.
    """
    code = {file.name: code_digest(file) for file in given.plugin}
    with locks.hold_lock(folder.common_lock, wait=True):
        before = read_request(folder)
        if before is not None:
            check_same(folder, before, given, code)
            if before.fingerprint != fingerprint:
                raise UserError(
                    f"{folder.out} was begun with another model or text than {model} and what the flags name: give "
                    "them as they were, or another --out"
                )
            grown = tuple(dict.fromkeys((*before.request.variants, *given.variants)))
            given = dataclasses.replace(given, variants=grown, heads=before.request.heads or given.heads)
        asked = Asked(str(model), label, given, fingerprint, tuple(variants), code)
        content = json.loads(TypeAdapter(Asked).dump_json(asked))
        durable.write_json(folder.out / REQUEST, {"format": FORMAT, **content})
    return asked


def read_request(folder: SearchFolder) -> Asked | None:
    """Return what the folder was asked for; None: nothing yet (UserError where that cannot be read)."""
    path = folder.out / REQUEST
    try:
        content: Any = read_json(path)
    except OSError:
        return None
    except ValueError as error:
        raise UserError(f"{path} cannot be read ({error}): give another --out") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{path} is of no format that this version reads: give another --out")
    try:
        return TypeAdapter(Asked).validate_python(content)
    except ValidationError as error:
        raise UserError(f"{path} cannot be read: give another --out") from error


def check_same(folder: SearchFolder, before: Asked, given: Request, code: Mapping[str, str]) -> None:
    """Raise UserError unless a request goes with what the folder was begun with."""
    for field in dataclasses.fields(Request):
        was, now = getattr(before.request, field.name), getattr(given, field.name)
        if field.name not in (*GROWS, "plugin") and was != now:
            flag = "--" + field.name.replace("_", "-")
            raise UserError(
                f"{folder.out} was begun with {flag} {was} and the flags now say {now}: give what it was begun with, "
                "or another --out (variants and --heads can be added)"
            )
    for name, digest in before.code.items():
        if code.get(name) != digest:
            what = "has changed since" if name in code else "is not given"
            raise UserError(
                f"{folder.out} was begun with --plugin {name}, which {what}: give it as it was, or another --out"
            )
