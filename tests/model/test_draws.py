"""Normal numbers by position: parts are those of the whole, and their law is the normal one."""

import math

import pytest
import torch
from torch import Tensor

from deconattn.model import draws
from deconattn.model.draws import Draws

SHAPES = [(61, 32), (300, 700), (37, 256), (5000,), (3, 5, 7), (1, 1)]


def whole(shape: tuple[int, ...], seed: int = 0, name: str = "a", sigma: float = 1.0) -> Tensor:
    """The reference: tile after tile, each by a generator of its own."""
    import hashlib

    import numpy

    rows, columns = shape[0], math.prod(shape[1:])
    key = int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:16], "little")
    matrix = numpy.empty((rows, columns), numpy.float32)
    width = min(256, columns)
    height = 4096 // width
    for top in range(0, rows, height):
        for left in range(0, columns, width):
            tile = matrix[top : top + height, left : left + width]
            bits = numpy.random.Philox(key=key, counter=[0, left // width, top // height, 0])
            tile[:] = numpy.random.Generator(bits).standard_normal(tile.shape, numpy.float32)
    return torch.from_numpy(matrix * numpy.float32(sigma))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_whole_is_a_philox_stream_a_tile(shape: tuple[int, ...]) -> None:
    reference = whole(shape, sigma=0.02)
    assert torch.equal(Draws(0, "a", shape, 0.02).block(*map(range, reference.shape)), reference)


@pytest.mark.parametrize("shape", SHAPES)
def test_parts_are_those_of_the_whole(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draws, "CHUNK", 5000)
    reference, numbers = whole(shape), Draws(0, "a", shape, 1.0)
    rows, columns = reference.shape
    generator = torch.Generator().manual_seed(0)
    for _ in range(30):
        top, bottom = sorted(torch.randint(rows + 1, (2,), generator=generator).tolist())
        left, right = sorted(torch.randint(columns + 1, (2,), generator=generator).tolist())
        part = reference[top:bottom, left:right]
        assert torch.equal(numbers.block(range(top, bottom), range(left, right)), part)
        start, stop = sorted(torch.randint(part.numel() + 1, (2,), generator=generator).tolist())
        flat = torch.full((stop - start,), torch.nan)
        for offset, some in numbers.flat(range(top, bottom), range(left, right), start, stop):
            flat[offset : offset + len(some)] = some
        assert torch.equal(flat, part.flatten()[start:stop])


@pytest.mark.parametrize("shape", [(300, 700), (33, 24), (40, 256), (17, 5000)])
def test_more_rows_begin_with_fewer(shape: tuple[int, int]) -> None:
    rows, columns = shape
    longest = Draws(0, "a", shape, 0.02).block(range(rows), range(columns))
    for fewer in (1, rows // 2, rows - 1):
        shorter = Draws(0, "a", (fewer, columns), 0.02).block(range(fewer), range(columns))
        assert torch.equal(longest[:fewer], shorter)


def test_threads_draw_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draws, "WORTH_THREADS", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert torch.equal(Draws(0, "a", (300, 700), 1.0).block(range(300), range(700)), whole((300, 700)))


def test_the_law_is_normal() -> None:
    numbers = Draws(3, "a", (1000, 1000), 1.0).block(range(1000), range(1000)).double().flatten()
    n = numbers.numel()
    moments = [(numbers**power).mean().item() for power in (1, 2, 3, 4)]
    for moment, expected, variance in zip(moments, (0, 1, 0, 3), (1, 2, 15, 96), strict=True):
        assert abs(moment - expected) < 5 * (variance / n) ** 0.5
    for bound in (0.5, 1.0, 2.0, 3.0, 4.0):  # each tail by itself
        share = math.erfc(bound / 2**0.5) / 2
        for tail in (numbers > bound, numbers < -bound):
            assert abs(tail.double().mean().item() - share) < 5 * (share / n) ** 0.5
    one, next_to_it = numbers[:-1], numbers[1:]
    assert abs((one * next_to_it).mean().item()) < 5 / n**0.5
    assert numbers.unique().numel() > 0.9 * n


def test_seeds_names_and_shapes_are_apart() -> None:
    drawn = [whole((40, 300), seed, name) for seed in (0, 1) for name in ("a", "b")]
    assert len({tensor[0, 0].item() for tensor in drawn}) == 4
    tiles = drawn[0][:32, :256].unflatten(0, (2, 16))
    assert not torch.equal(*tiles)
