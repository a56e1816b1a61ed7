"""Which layers are standard (table 11), and how a mistaken pattern is answered."""

import pytest

from deconattn.config.pattern import NAMED, check_variant, layer_variants
from deconattn.errors import UserError

KNOWN = ("standard", "mlp", "approximate", "nonapproximate", "rndemb", "fixedseq", "staticemb")


def standard_layers(pattern: str, num_layers: int, variant: str = "rndemb") -> list[int]:
    """Numbers of the standard layers, from 1."""
    variants = layer_variants(pattern, variant, num_layers, KNOWN)
    assert len(variants) == num_layers
    assert set(variants) <= {"standard", variant}
    return [layer for layer, name in enumerate(variants, start=1) if name == "standard"]


TABLE_11 = {
    "uniform": [],
    "even": [2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24],
    "odd": [1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23],
    "top": [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12],
    "middle": [1, 2, 3, 4, 5, 6, 19, 20, 21, 22, 23, 24],
    "bottom": [13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24],
    "25%": [4, 8, 12, 16, 20, 24],
    "first": [1],
    "last": [24],
    "bilateral": [1, 24],
}


@pytest.mark.parametrize("pattern", TABLE_11)
def test_table_11(pattern: str):
    assert standard_layers(pattern, 24) == TABLE_11[pattern]


def test_every_name_is_in_the_table():
    assert set(NAMED) == set(TABLE_11)


@pytest.mark.parametrize(
    ("ratio", "num_layers", "expected"),
    [
        ("1:1", 24, TABLE_11["even"]),
        ("1:3", 24, TABLE_11["25%"]),
        ("0:1", 6, []),
        ("1:0", 6, [1, 2, 3, 4, 5, 6]),
        ("0:5", 3, []),
        ("3:0", 4, [1, 2, 3, 4]),
        ("2:1", 6, [2, 3, 5, 6]),
        ("1:2", 7, [3, 6]),  # the third period is cut after its first variant layer
        ("2:2", 7, [3, 4, 7]),
        ("1:7", 6, []),
        ("12:12", 24, TABLE_11["bottom"]),
    ],
)
def test_ratios(ratio: str, num_layers: int, expected: list[int]):
    assert standard_layers(ratio, num_layers) == expected


def test_other_depths():
    assert standard_layers("even", 7) == [2, 4, 6]
    assert standard_layers("odd", 7) == [1, 3, 5, 7]
    assert standard_layers("bilateral", 6) == [1, 6]
    assert standard_layers("bilateral", 1) == [1]
    assert standard_layers("last", 6) == [6]
    assert standard_layers("top", 6) == [1, 2, 3]
    assert standard_layers("bottom", 6) == [4, 5, 6]
    assert standard_layers("middle", 28) == [*range(1, 8), *range(22, 29)]


def test_variant_may_be_standard():
    assert standard_layers("uniform", 3, variant="standard") == [1, 2, 3]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("3*fixedseq,standard", ("fixedseq",) * 3 + ("standard",)),
        (" 2 * mlp , standard,rndemb ", ("mlp", "mlp", "standard", "rndemb")),
        ("4*approximate", ("approximate",) * 4),
        ("standard,1*standard,2*mlp", ("standard", "standard", "mlp", "mlp")),
        ("0*mlp,4*standard", ("standard",) * 4),
    ],
)
def test_explicit_lists(pattern: str, expected: tuple[str, ...]):
    assert layer_variants(pattern, "rndemb", 4, KNOWN) == expected


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("2*standard[0-5]+mlp[6-8]", ("standard[0-5]+mlp[6-8]",) * 2),
        ("mlp[3-3] + standard[0-2], rndemb", ("standard[0-2]+mlp[3]", "rndemb")),
        ("standard[0]+mlp[1-7],1*mlp", ("standard[0]+mlp[1-7]", "mlp")),
    ],
)
def test_layers_of_several_mixers_by_heads(pattern: str, expected: tuple[str, ...]):
    assert layer_variants(pattern, "rndemb", 2, KNOWN) == expected
    assert layer_variants("1:1", expected[0], 2, KNOWN) == (expected[0], "standard")


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("standard[0-1]+mpl[2-3]", r"unknown variant 'mpl' \(did you mean 'mlp'\?\)"),
        ("standard[0-1]+mlp", "cannot read 'mlp'; write NAME"),
        ("standard[]", r"cannot read 'standard\[\]'"),
        ("standard[0-1]mlp[2-3]", "cannot read"),
        ("2*standard[0-1]+mlp[2-3]", "names 2 layers but the model has 1"),
    ],
)
def test_mistaken_parts(pattern: str, message: str):
    with pytest.raises(UserError, match=message):
        layer_variants(pattern, "rndemb", 1, KNOWN)


def test_single_name_is_a_list_of_one():
    assert layer_variants("mlp", "rndemb", 1, KNOWN) == ("mlp",)


@pytest.mark.parametrize("pattern", ["fixedseq,standard", "5*mlp", "standard"])
def test_list_of_another_length(pattern: str):
    with pytest.raises(UserError, match=r"names \d layers? but the model has 4"):
        layer_variants(pattern, "rndemb", 4, KNOWN)


@pytest.mark.parametrize(
    ("pattern", "nearest"), [("evn", "even"), ("botom", "bottom"), ("bi-lateral", "bilateral"), ("unifrom", "uniform")]
)
def test_unknown_pattern_names_the_nearest(pattern: str, nearest: str):
    with pytest.raises(
        UserError, match=f"unknown pattern '{pattern}' \\(did you mean '{nearest}'\\?\\): choose one of"
    ):
        layer_variants(pattern, "rndemb", 4, KNOWN)


@pytest.mark.parametrize("pattern", ["", "0:0", "1:", "1:2:3", "-1:2", "1.5:1", "xyzzy"])
def test_unknown_pattern(pattern: str):
    with pytest.raises(UserError, match="unknown pattern"):
        layer_variants(pattern, "rndemb", 4, KNOWN)


@pytest.mark.parametrize("pattern", ["mlp,,standard,mlp", "mlp*3,standard", "3*,standard", "-1*mlp,standard", "mlp,"])
def test_unreadable_entry(pattern: str):
    with pytest.raises(UserError, match=r"cannot read|unknown variant"):
        layer_variants(pattern, "rndemb", 4, KNOWN)


def test_unknown_variant_names_the_nearest():
    with pytest.raises(UserError, match=r"unknown variant 'rndem' \(did you mean 'rndemb'\?\): choose one of approx"):
        layer_variants("even", "rndem", 4, KNOWN)
    with pytest.raises(UserError, match=r"unknown variant 'fixseq' \(did you mean 'fixedseq'\?\)"):
        layer_variants("3*fixseq,standard", "rndemb", 4, KNOWN)
    with pytest.raises(UserError, match="unknown variant 'zzz': choose one of"):
        check_variant("zzz", KNOWN)
