"""Any part of a tensor is put together from any slices of it, from the bytes that hold it, and damage is seen."""

import json
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from deconattn.checkpoint import slice_file
from deconattn.checkpoint.manifest import MANIFEST, Progress, read_manifest, write_manifest
from deconattn.checkpoint.slice_file import BLOCK, NAME, Part, Slice, SliceFile, write_slices
from deconattn.checkpoint.slices import SliceReader
from deconattn.errors import UserError

Cut = tuple[Part | None, int, int]


def taken(whole: Tensor, part: Part | None, first: int, last: int) -> Tensor:
    """The run of a part, by the definition."""
    box = whole if part is None else whole.narrow(part.dim, part.start, part.stop - part.start)
    return box.flatten()[first:last]


def cuts(shape: Sequence[int], dim: int | None, parts: int, runs: int) -> list[Cut]:
    """Cut a tensor along `dim` into unequal parts, and each into unequal runs."""
    boxes: list[Part | None] = [None]
    if dim is not None:
        bounds = sorted({0, shape[dim], *(shape[dim] * i // parts + (i % 2) for i in range(1, parts))})
        boxes = [Part(dim, a, b) for a, b in pairwise(bounds)]
    found: list[Cut] = []
    for box in boxes:
        size = math.prod(shape if box is None else box.of(shape))
        ends = sorted({0, size, *(min(size, size * i // runs + i) for i in range(1, runs))})
        found += [(box, a, b) for a, b in pairwise(ends)]
    return found


def store(folder: Path, tensors: dict[str, Tensor], layout: list[Cut]) -> SliceReader:
    """Write tensors, cut alike, a file a slice, and open them."""
    (folder / "config.json").write_text("{}")
    written = {}
    for number, (part, first, last) in enumerate(layout):
        slices = [
            Slice(
                name,
                tuple(whole.shape),
                part,
                first,
                {"weights": taken(whole, part, first, last), "exp_avg": taken(-whole, part, first, last)},
            )
            for name, whole in tensors.items()
        ]
        written[NAME.format(number)] = write_slices(folder / NAME.format(number), slices)
    write_manifest(folder, Progress(), written)
    return SliceReader(folder, read_manifest(folder))


LAYOUTS = {
    "whole": lambda shape: cuts(shape, None, 1, 1),
    "runs": lambda shape: cuts(shape, None, 1, 5),
    "rows": lambda shape: cuts(shape, 0, 3, 1),
    "columns": lambda shape: cuts(shape, len(shape) - 1, 3, 1),
    "rows in runs": lambda shape: cuts(shape, 0, 2, 3),
    "columns in runs": lambda shape: cuts(shape, len(shape) - 1, 2, 3),
}


@pytest.mark.parametrize("shape", [(7,), (6, 5), (3, 4, 5), (40, 33)])
def test_any_part_is_put_together_from_any_slices(shape: tuple[int, ...], tmp_path: Path) -> None:
    whole = torch.randn(shape)
    for number, written in enumerate(LAYOUTS.values()):
        layout = written(shape)
        folder = tmp_path / f"{number}"
        folder.mkdir()
        reader = store(folder, {"w": whole}, layout)
        for wanted in LAYOUTS.values():
            for part, first, last in wanted(shape):
                for kind, sign in (("weights", 1), ("exp_avg", -1)):
                    found = reader.read(kind, "w", part, first, last)
                    assert torch.equal(found, sign * taken(whole, part, first, last)), (number, part, first, last)


def test_a_scalar_and_whole_numbers(tmp_path: Path) -> None:
    tensors = {"ids": torch.arange(300), "scalar": torch.tensor(3.5), "w": torch.randn(3, 3)}
    slices = [Slice(name, tuple(t.shape), None, 0, {"weights": t.flatten()}) for name, t in tensors.items()]
    entry = write_slices(tmp_path / NAME.format(0), slices)
    write_manifest(tmp_path, Progress(), {NAME.format(0): entry})
    (tmp_path / "config.json").write_text("{}")
    write_manifest(tmp_path, Progress(), {NAME.format(0): entry})
    reader = SliceReader(tmp_path, read_manifest(tmp_path))
    assert all(torch.equal(reader.read("weights", name), tensor.flatten()) for name, tensor in tensors.items())
    plain = load_file(tmp_path / NAME.format(0))
    assert all(torch.equal(plain[f"weights/{name}"], tensor) for name, tensor in tensors.items()), (
        "safetensors reads it"
    )


@pytest.fixture
def large(tmp_path: Path) -> tuple[Path, Tensor, SliceReader]:
    """A tensor of ten blocks and a bit, in one slice."""
    whole = torch.randn(10 * BLOCK // 512 + 1, 512)
    return tmp_path, whole, store(tmp_path, {"w": whole}, [(None, 0, whole.numel())])


def test_only_the_blocks_that_are_needed_are_read(
    large: tuple[Path, Tensor, SliceReader], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, whole, reader = large
    header = reader._file(0).bytes_read
    assert torch.equal(
        reader.read("weights", "w", None, 3 * BLOCK + 5, 4 * BLOCK + 6), whole.flatten()[3 * BLOCK + 5 : 4 * BLOCK + 6]
    )
    assert reader.bytes_read - header == 4 * 2 * BLOCK
    reader.bytes_read = 0
    part = Part(1, 100, 103)
    monkeypatch.setattr("deconattn.checkpoint.slices.READ", 2 * BLOCK)
    assert torch.equal(reader.read("weights", "w", part), taken(whole, part, 0, whole.numel()))


def test_damage_is_seen_by_who_reads_it_and_by_nobody_else(large: tuple[Path, Tensor, SliceReader]) -> None:
    folder, whole, reader = large
    path = folder / NAME.format(0)
    offset = reader._file(0).slices["weights/w"].offset + 4 * (5 * BLOCK + 7)
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)
    reader = SliceReader(folder, read_manifest(folder))
    assert torch.equal(reader.read("weights", "w", None, 0, 5 * BLOCK), whole.flatten()[: 5 * BLOCK])
    assert torch.equal(reader.read("exp_avg", "w"), -whole.flatten())
    with pytest.raises(UserError, match=rf"^{path} is damaged \(weights/w is not what was written\): restore it"):
        reader.read("weights", "w", None, 5 * BLOCK, 6 * BLOCK)
    shares = []
    for number in range(3):
        reader = SliceReader(folder, read_manifest(folder))
        try:
            reader.verify(share=(number, 3))
            shares.append("good")
        except UserError:
            shares.append("damaged")
        reader.verify(("exp_avg",), share=(number, 3))
    assert sorted(shares) == ["damaged", "good", "good"]


def test_shares_of_a_verification_read_each_block_once(large: tuple[Path, Tensor, SliceReader]) -> None:
    folder, whole, _ = large
    read = []
    for number in range(4):
        reader = SliceReader(folder, read_manifest(folder))
        reader.verify(share=(number, 4))
        read.append(reader.bytes_read)
    header = read_manifest(folder).files[NAME.format(0)].header_bytes
    assert header is not None
    assert sum(read) == 2 * whole.nbytes + 4 * header and max(read) < whole.nbytes


def test_a_header_is_sealed_by_the_manifest(large: tuple[Path, Tensor, SliceReader]) -> None:
    folder, _, _ = large
    path = folder / NAME.format(0)
    content = path.read_bytes()
    at = content.index(b"first")
    path.write_bytes(content[:at] + b"fIrst" + content[at + 5 :])
    with pytest.raises(UserError, match="its header is not what was written"):
        SliceReader(folder, read_manifest(folder)).read("weights", "w")
    path.write_bytes(content[:-8])
    with pytest.raises(UserError, match="is damaged"):
        SliceReader(folder, read_manifest(folder)).read("weights", "w")


def test_slices_that_do_not_make_whole_tensors_are_not_sealed(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    entry = write_slices(tmp_path / NAME.format(0), [Slice("w", (10,), None, 3, {"weights": torch.zeros(7)})])
    with pytest.raises(ValueError, match="do not make the whole of w"):
        write_manifest(tmp_path, Progress(), {NAME.format(0): entry})
    with pytest.raises(OSError, match="header is not what was written"):
        write_manifest(tmp_path, Progress(), {NAME.format(0): entry | {"sha256": "0" * 64}})
    assert not (tmp_path / MANIFEST).exists()


def test_a_manifest_of_slices_that_cannot_be_is_refused(large: tuple[Path, Tensor, SliceReader]) -> None:
    folder, _, _ = large
    content = json.loads((folder / MANIFEST).read_text())
    for piece in ([1, 0, 5], [0, 0, 10**9], [0], [0, 0, 5, 7, 0, 1], [0, 0, 5, 0, 9, 3]):
        content["tensors"]["w"]["slices"] = [piece]
        (folder / MANIFEST).write_text(json.dumps(content | {"format_version": 1, "sha256": None}))
        with pytest.raises(UserError, match="lists slices that cannot be"):
            read_manifest(folder)


def test_what_is_written_in_part_is_written_again_in_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / NAME.format(0)
    piece = Slice("w", (5,), None, 0, {"weights": torch.arange(5.0)})
    with monkeypatch.context() as patch:
        patch.setattr(
            slice_file.os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError(5, "Input/output error"))
        )
        with pytest.raises(OSError, match="Input/output"):
            write_slices(path, [piece])
    entry = write_slices(path, [piece])
    with SliceFile(path, (entry["header_bytes"], entry["sha256"])) as file:
        assert torch.equal(file.read("weights/w", 1, 4), torch.arange(1.0, 4.0))
