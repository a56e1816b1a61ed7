"""Inputs that are damaged, change, vanish or may not be read: one line that names file and place."""

import os
from contextlib import closing
from pathlib import Path
from random import Random

import pyarrow as pa
import pytest

from deconattn.data.reading.blocks import InputBlock, read_blocks
from deconattn.data.reading.input_files import Input, find_inputs
from deconattn.errors import UserError
from tests.data.reading.mutations import NAMES, encode


def write(path: Path, content: bytes) -> list[Input]:
    path.write_bytes(content)
    return find_inputs([str(path)])


def read(inputs: list[Input]) -> list[InputBlock]:
    return list(read_blocks(inputs, "text"))


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("a.txt", "a.jsonl")])
def test_truncated_files_are_named(tmp_path: Path, name: str, kept: float) -> None:
    content = encode(name, [f"{number} words" for number in range(30)])
    inputs = write(tmp_path / name, content[: int(len(content) * kept)])
    with pytest.raises(UserError, match=f"{tmp_path / name} is truncated or damaged .*; fetch it again") as caught:
        read(inputs)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("a.jsonl.gz", "after [1-9][0-9,]* decompressed bytes"),
        ("a.jsonl.zst", "after [1-9][0-9,]* decompressed bytes"),
        ("a.jsonl.bz2", "after [1-9][0-9,]* decompressed bytes"),
        ("a.parquet", "in row group [1-9]"),
        ("packed.arrow", "in record batch [1-9]"),
    ],
)
def test_the_place_of_the_damage_is_told(tmp_path: Path, name: str, place: str) -> None:
    random = Random(2)
    content = bytearray(encode(name, [random.randbytes(60_000).hex() for _ in range(12)]))
    middle = len(content) * 3 // 4
    content[middle : middle + 300] = random.randbytes(0 if name == "a.jsonl.zst" else 300)  # without a checksum
    with pytest.raises(UserError, match=f"truncated or damaged {place}"):
        read(write(tmp_path / name, bytes(content)))


def test_an_arrow_stream_cut_between_two_batches(tmp_path: Path) -> None:
    content = encode("stream.arrow", ["x"] * 7)
    for end in (8, 4):
        with pytest.raises(UserError, match="damaged in record batch 3 .(the end mark is missing|Corrupted metadata)"):
            read(write(tmp_path / "stream.arrow", content[:-end]))
    with pytest.raises(UserError, match="the end mark is missing"):
        read(write(tmp_path / "stream.arrow", content * 2))


def test_a_window_that_is_too_large(tmp_path: Path) -> None:
    frame = b"\x28\xb5\x2f\xfd\x00" + bytes([20 << 3]) + b"\x01\0\0"  # magic, 1 GiB window, an empty last block
    with pytest.raises(UserError, match="window above 128 MiB; compress it again with zstd --long=27"):
        read(write(tmp_path / "a.jsonl.zst", frame))


@pytest.mark.parametrize("name", NAMES)
def test_files_that_change_or_go(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / name
    content = encode(name, ["text"] * 9)
    inputs = write(path, content)
    os.utime(path, (0, 0))
    with pytest.raises(UserError, match=f"{path}: changed while the inputs were read"):
        read(inputs)
    path.unlink()
    with pytest.raises(UserError, match=f"{path}: vanished while the inputs were read"):
        read(inputs)


def test_a_file_that_is_cut_short_or_grows_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deconattn.data.reading.blocks._AHEAD", 1)
    path = tmp_path / "a.jsonl"
    for size, message in [(5_000_000, "cut short while it was read .byte 5,000,000 of"), (9_000_000, "changed while")]:
        inputs = write(path, b'{"text": "line"}\n' * 500_000)
        with pytest.raises(UserError, match=message), closing(read_blocks(inputs, "text")) as blocks:
            next(blocks)
            os.truncate(path, size)
            for _ in blocks:
                pass


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = write(tmp_path / "a.jsonl", b"{}\n")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(pa, "OSFile", refuse)
    with pytest.raises(UserError, match="a.jsonl: no permission to read it"):
        read(inputs)


def test_what_goes_wrong_behind_a_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec = pytest.importorskip("fsspec.implementations.local")
    path = tmp_path / "a.jsonl.zst"
    content = encode(path.name, ["some text"] * 100)
    write(path, content[:-5])
    with pytest.raises(UserError, match="a.jsonl.zst is truncated or damaged after 0 decompressed bytes"):
        read(find_inputs([path.as_uri()]))
    plain = tmp_path / "a.txt"
    write(plain, b"hello")
    inputs = find_inputs([plain.as_uri()])
    plain.write_bytes(b"hell")
    with pytest.raises(UserError, match="cut short while it was read .byte 4 of 5"):
        read(inputs)
    plain.unlink()
    with pytest.raises(UserError, match="a.txt: cannot be read .FileNotFoundError"):
        read(inputs)

    def fail(*_: object) -> bytes:
        raise RuntimeError("connection reset\nby peer")

    monkeypatch.setattr(fsspec.LocalFileOpener, "read", fail)
    with pytest.raises(
        UserError, match=r"a.jsonl.zst: cannot be read \(RuntimeError: connection reset\); check the URL"
    ):
        read(find_inputs([path.as_uri()]))
