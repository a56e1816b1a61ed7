import numpy as np
import pytest

from deconattn.data.packing.selection import cut_document, is_validation


@pytest.mark.parametrize("fraction", [0.0, 1e-9, 0.01, 0.2, 0.9])
def test_the_fraction_is_met(fraction: float) -> None:
    held = [is_validation(number, fraction) for number in range(20_000)]
    assert sum(held) / 20_000 == pytest.approx(fraction, rel=0.15, abs=1e-6)
    assert is_validation(np.arange(20_000, dtype=np.uint64), fraction).tolist() == held


def test_a_single_document_is_cut_at_white_space() -> None:
    text = "word " * 199 + "last\n"
    train, val = cut_document(text, 0.1)
    assert train + val == text
    assert val.startswith(" word") and 90 <= len(val) <= 110


@pytest.mark.parametrize(
    ("text", "expected"),
    [("abcdef", ["abcde", "f"]), ("a", ["a"]), ("a bcdefghij", ["a", " bcdefghij"]), (" ab \n", [" a", "b \n"])],
)
def test_awkward_single_documents(text: str, expected: list[str]) -> None:
    assert cut_document(text, 0.2) == expected
