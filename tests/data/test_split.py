import pytest

from deconattn.data.split import cut_if_single, is_validation, split_documents


def splits(count: int, fraction: float) -> list[str]:
    return [split for split, _ in split_documents(range(count), fraction, was_cut=False)]


def test_the_fraction_is_met() -> None:
    for fraction in (0.01, 0.2, 0.9):
        held = sum(is_validation(number, fraction) for number in range(20_000)) / 20_000
        assert held == pytest.approx(fraction, rel=0.15)


def test_a_document_s_split_depends_on_its_number_only() -> None:
    long, short = splits(1000, 0.1), splits(500, 0.1)
    assert long[:499] == short[:499]
    assert [document for _, document in split_documents(range(1000), 0.1, was_cut=False)] == list(range(1000))


@pytest.mark.parametrize("count", range(2, 12))
@pytest.mark.parametrize("fraction", [1e-9, 0.5, 0.999999])
def test_neither_split_is_empty(count: int, fraction: float) -> None:
    assert set(splits(count, fraction)) == {"train", "val"}


def test_none_held_out() -> None:
    assert splits(300, 0.0) == ["train"] * 300
    assert splits(1, 0.999999) == ["train"]
    assert splits(0, 0.5) == []


def test_a_single_document_is_cut_at_white_space() -> None:
    text = "word " * 199 + "last\n"
    texts, was_cut = cut_if_single([text], 0.1)
    train, val = texts
    assert was_cut and train + val == text
    assert val.startswith(" word") and 90 <= len(val) <= 110
    assert [split for split, _ in split_documents([train, val], 0.1, was_cut)] == ["train", "val"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("abcdef", ["abcde", "f"]), ("a", ["a"]), ("a bcdefghij", ["a", " bcdefghij"]), (" ab \n", [" a", "b \n"])],
)
def test_awkward_single_documents(text: str, expected: list[str]) -> None:
    texts, was_cut = cut_if_single([text], 0.2)
    assert list(texts) == expected
    assert was_cut == (len(expected) == 2)


def test_more_documents_are_left_alone() -> None:
    texts, was_cut = cut_if_single(["a b", "c d", "e f"], 0.2)
    assert (list(texts), was_cut) == (["a b", "c d", "e f"], False)
    texts, was_cut = cut_if_single(["a b"], 0.0)
    assert (list(texts), was_cut) == (["a b"], False)
