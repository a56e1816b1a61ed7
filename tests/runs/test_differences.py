"""What tells runs apart."""

from pathlib import Path

from deconattn.pages.palette import COLOURS
from deconattn.runs.differences import colours_of, differing, groups_of, labels_of
from deconattn.runs.run import Run, read_runs
from tests.runs.conftest import Maker, step_row

ROWS = [step_row(1, 2.0), step_row(2, 1.0)]


def runs(*folders: Path) -> list[Run]:
    return read_runs(folders)


def test_labels_say_what_differs(made: Maker) -> None:
    one = made("a", ROWS, "--variant", "fixedseq", "--pattern", "1:1")
    other = made("b", ROWS, "--variant", "fixedseq", "--pattern", "1:1", "--lr", "0.01", "--doc-mask")
    found = runs(one, other)
    assert labels_of(found) == ["doc mask no, lr 0.002", "doc mask yes, lr 0.01"]
    standard = runs(made("c", ROWS), made("d", ROWS, "--pattern", "1:1"))
    assert differing(standard) == {}, "a pattern of standard layers is as good as another"
    assert labels_of(standard) == ["c", "d"]
    assert labels_of(runs(one, standard[0].folder)) == ["fixedseq, 1:1", "standard"]


def test_what_a_size_brings_is_not_named(made: Maker) -> None:
    def sized(name: str, *flags: str) -> Path:
        return made(name, ROWS, "--size", name.split("-")[0], "--num-hidden-layers", "2", *flags)

    found = runs(sized("tiny-1"), sized("70m-1", "--hidden-size", "32"))
    assert list(differing(found)) == ["size"], "SMALL gives the dimensions of both"


def test_a_corpus_is_its_content(made: Maker) -> None:
    same = runs(made("a", ROWS), made("b", ROWS))
    assert differing(same) == {}
    assert labels_of(runs(same[0].folder, made("c", ROWS, content="4567"))) == ["data corpus of a", "data corpus of c"]


def test_a_run_without_configuration_goes_by_its_name(made: Maker) -> None:
    broken = made("broken", ROWS)
    (broken / "config.json").write_text("{")
    found = runs(made("a", ROWS, "--lr", "0.01"), broken, made("c", ROWS))
    assert labels_of(found) == ["lr 0.01", "broken", "lr 0.002"]
    assert [colour for colour, _ in colours_of(found)] == ["standard", "", "standard"]


def test_colours(made: Maker) -> None:
    alike = runs(*(made(f"s{seed}", ROWS, "--seed", str(seed)) for seed in range(9)))
    looks = colours_of(alike)
    assert [colour for colour, _ in looks[:7]] == list(COLOURS) and len(set(looks)) == 9
    others = [made(name, ROWS, "--variant", name) for name in ("mlp", "rndemb")]
    assert colours_of(runs(*others, alike[0].folder, alike[1].folder)) == [
        ("mlp", 0), ("rndemb", 0), ("standard", 0), ("standard", 1),
    ]  # fmt: skip


def test_groups_differ_by_seed_alone(made: Maker) -> None:
    folders = [
        made("a1", ROWS, "--seed", "1"),
        made("b1", ROWS, "--seed", "1", "--lr", "0.01"),
        made("a2", ROWS, "--seed", "2", "--save-every", "2", "--keep", "7"),
        made("a1-again", ROWS, "--seed", "1"),
        made("a3", ROWS[:1], "--seed", "3"),
    ]
    (first, second), notes = groups_of(runs(*folders))
    assert {seed: run.name for seed, run in first.runs.items()} == {1: "a1", 2: "a2"}
    assert [run.name for run in first.apart] == ["a1-again", "a3"]
    assert (first.label, second.label) == ("lr 0.002", "lr 0.01") and second.first.name == "b1"
    assert notes == [
        "a1-again has the settings and the seed of a1: it is in no mean.",
        "a3 is at step 1, others of its group at 2: it is in no mean.",
    ]
