"""`decoding/decode.py` at toy dimensions: that it measures what it says, not how fast anything is."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from benchmarks.decoding import contestants as decode_contestants
from benchmarks.decoding import decode
from benchmarks.decoding.contestants import QWEN2, Contestant, Player, Setting, Steps, cache_bytes, copied, groups
from benchmarks.decoding.report import markdown, mebibytes, summarize, time_and_ratio
from deconattn.errors import UserError
from deconattn.mixers import variant_names

PEER = QWEN2.name
TOY = Setting("tiny", 2, 64, "fp32", "cpu", longest=40)
EVERYONE = [QWEN2, *map(Contestant, variant_names()), Contestant("fixedseq", "1:1")]


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Static caches without the half minute that compiling takes."""
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)


def logits_after(player: Player, rows: int, length: int) -> Tensor:
    """Of a new token behind the prompt, by a pass over everything without a cache."""
    tokens = torch.cat([player.setting.tokens(rows, length), player.setting.tokens(rows, 1)], dim=1)
    return player.model(tokens, use_cache=False).logits[:, -1:]


@pytest.mark.parametrize("contestant", EVERYONE, ids=lambda one: one.name)
def test_copies_of_a_row_are_the_cache_of_a_batch(contestant: Contestant):
    """Of the size that a prompt in every row leaves, and with the same logits."""
    player = Player(contestant, TOY)
    steps = Steps(player, rows=3, length=20, room=8, turn=1)
    prompt = player.model(TOY.tokens(3, 20), use_cache=True).past_key_values
    assert (steps.nbytes, steps.fixed_nbytes) == cache_bytes(prompt)
    assert_close(steps(), logits_after(player, 3, 20))
    assert steps.cache.get_seq_length() == 21


@pytest.mark.parametrize("contestant", EVERYONE, ids=lambda one: one.name)
def test_steps_from_a_static_cache(contestant: Contestant, uncompiled: None):
    player = Player(contestant, replace(TOY, static=True))
    steps = Steps(player, rows=2, length=20, room=8, turn=1)
    assert_close(steps(), logits_after(player, 2, 20))
    assert (steps.nbytes, steps.fixed_nbytes) == cache_bytes(steps.cache)  # a step took no more memory


def test_a_turn_is_so_many_steps_and_changes_nothing_for_the_next_case():
    player = Player(Contestant("approximate"), TOY)
    first = Steps(player, rows=1, length=20, room=8, turn=3)
    logits = first()
    assert first.cache.get_seq_length() == 23
    again = Steps(player, rows=1, length=20, room=8, turn=3)
    assert again.cache.get_seq_length() == 20
    assert torch.equal(again(), logits)


def test_standard_and_the_peer_do_the_same_work():
    """With the same weights: the same logits from caches of as many bytes, where ours holds no empty slots."""
    ours, peer = Player(Contestant("standard"), replace(TOY, longest=600)), Player(QWEN2, replace(TOY, longest=600))
    peer.model.load_state_dict(ours.model.state_dict())
    steps = [Steps(player, rows=2, length=256, room=8, turn=1) for player in (ours, peer)]
    assert steps[0].nbytes == steps[1].nbytes > 0
    assert_close(steps[0](), steps[1]())


def test_generation_adds_as_many_tokens(uncompiled: None):
    for setting in (TOY, replace(TOY, static=True)):
        for contestant in (QWEN2, Contestant("nonapproximate", "1:1")):
            assert decode_contestants.generation(Player(contestant, setting), 7, 5)().shape == (1, 12)


def test_copies_share_what_is_held_once_for_all_rows():
    player = Player(Contestant("rndemb"), TOY)
    row = player.cache(1, 20, 8)
    copies = copied(row, 4)
    for one, other in zip(row.layers, copies.layers, strict=True):
        assert all(a is b for a, b in zip(one.fixed, other.fixed, strict=True)) and one.fixed
        assert one.tensors["values"].data_ptr() != other.tensors["values"].data_ptr()
    assert copies.nbytes == 4 * row.nbytes


def test_weights_and_caches_come_in_the_precision():
    setting = replace(TOY, precision="bf16")
    for contestant in (QWEN2, Contestant("standard")):
        steps = Steps(Player(contestant, setting), rows=1, length=20, room=8, turn=1)
        assert steps().dtype == torch.bfloat16
        assert 2 * steps.nbytes == Steps(Player(contestant, TOY), rows=1, length=20, room=8, turn=1).nbytes


def test_groups_fit_and_have_the_peer():
    ours = [Contestant("mlp"), Contestant("standard"), Contestant("staticemb")]
    needed = [TOY.nbytes(one, rows=1000) for one in (QWEN2, *ours)]
    assert groups(ours, TOY, 1000, sum(needed)) == [[QWEN2, *ours]]
    assert groups(ours, TOY, 1000, sum(needed) - 1) == [[QWEN2, *ours[:2]], [QWEN2, ours[2]]]
    assert groups(ours, TOY, 1000, 0) == [[QWEN2, one] for one in ours]
    assert groups([], TOY, 1000, 0) == []


def test_ratios_are_taken_within_rounds():
    summary = summarize({PEER: [1.0, 3.0, 1.0], "standard": [0.5, 1.5, 2.0]}, batch=6, peer=PEER)
    assert summary["standard"]["ratio"] == 2
    assert summary["standard"]["ms_a_token"] == 1500
    assert summary["standard"]["tokens_per_second"] == 4
    assert (summary["standard"]["fastest_ms"], summary["standard"]["slowest_ms"]) == (500, 2000)
    assert summarize({"standard": [1.0]}, 1, PEER)["standard"]["ratio"] is None


def test_cells():
    assert time_and_ratio(1.234, 2.0) == "1.23 (2.00)"
    assert time_and_ratio(1.234, None) == "1.23"
    assert mebibytes(3 * 2**30, 0) == "3,072.0"
    assert mebibytes(2**14, 2**20) == "0.016 + 1.0"
    assert mebibytes(0, 0) == "0.0"


Run = Callable[..., tuple[int, Path]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """decode.py with these flags, at toy dimensions: its exit code and the folder of its results."""

    def with_flags(*flags: str) -> tuple[int, Path]:
        toy = "--size tiny --layers 2 --vocab-size 64 --steps 2 --steps-a-turn 1 --prompt 4 --new-tokens 3".split()
        monkeypatch.setattr("sys.argv", ["decode.py", *toy, "--out", str(tmp_path / "results"), *flags])
        return decode.main(), tmp_path / "results"

    return with_flags


def cases_of(folder: Path, precision: str = "fp32") -> dict[tuple[str, int, int], dict[str, Any]]:
    result = json.loads((folder / f"decode-tiny-{precision}-cpu.json").read_text())
    assert {"date", "command", "machine", "versions", "options"} < set(result)
    assert (result["peer"], result["options"]["precision"]) == (PEER, precision)
    return {(case["kind"], case["batch"], case["length"]): case for case in result["cases"]}


@pytest.mark.slow
def test_everything_is_measured(run: Run, uncompiled: None, capsys: pytest.CaptureFixture[str]):
    """All kinds of cases, by all contestants, into the file, with times and bytes; and nothing is left beside it."""
    code, folder = run(*"--batches 1 2 --lengths 20 8 --static mlp --variants mlp standard fixedseq".split())
    assert code == 0
    assert sorted(path.name for path in folder.iterdir()) == ["decode-tiny-fp32-cpu.json", "decode-tiny-fp32-cpu.md"]
    cases = cases_of(folder)
    cached = [("step", batch, length) for length in (8, 20) for batch in (1, 2)]
    static = [("static", batch, length) for length in (8, 20) for batch in (1, 2)]
    assert list(cases) == [*cached, ("generate", 1, 4), ("overhead", 1, 1), *static, ("generate static", 1, 4)]
    everyone = [PEER, "standard", "mlp", "fixedseq", "mlp 1:1", "fixedseq 1:1"]
    for (kind, batch, _), case in cases.items():
        assert list(case["contestants"]) == ([PEER, "mlp"] if "static" in kind else everyone)
        (samples,) = case["samples"]
        for name, row in case["contestants"].items():
            assert len(samples[name]) == (decode.GENERATIONS if "generate" in kind else 2)
            assert all(seconds > 0 for seconds in samples[name])
            assert 1e3 * min(samples[name]) == row["fastest_ms"] <= row["ms_a_token"] <= row["slowest_ms"]
            assert row["tokens_per_second"] == pytest.approx(1e3 * batch / row["ms_a_token"])
            assert row["ratio"] == 1 if name == PEER else row["ratio"] > 0
    setting = replace(TOY, longest=20 + 2 + 2)
    for contestant in (QWEN2, Contestant("mlp"), Contestant("fixedseq"), Contestant("fixedseq", "1:1")):
        cache = Player(contestant, setting).cache(2, 20, 4)
        row = cases["step", 2, 20]["contestants"][contestant.name]
        assert (row["cache_bytes"], row["fixed_bytes"]) == cache_bytes(cache)
    table = (folder / "decode-tiny-fp32-cpu.md").read_text()
    assert "| contestant | 1 x 8 | 1 x 20 | 2 x 8 | 2 x 20 |" in table
    assert table.count("| mlp 1:1 |") == 4 and table.count("| mlp |") == 6
    assert "A step from a static cache" in capsys.readouterr().out


@pytest.mark.slow
def test_contestants_that_do_not_fit_together(run: Run, monkeypatch: pytest.MonkeyPatch):
    """Race in groups; the peer's figures are those of the first, and every group's samples are kept."""
    monkeypatch.setattr(decode, "_memory", lambda device: 0)
    _, folder = run(*"--batches 1 --lengths 8 --variants mlp standard --patterns 0:1 --precision fp32 bf16".split())
    assert cases_of(folder, "bf16").keys() == cases_of(folder).keys()
    case = cases_of(folder)["step", 1, 8]
    assert [list(samples) for samples in case["samples"]] == [[PEER, "standard"], [PEER, "mlp"]]
    assert list(case["contestants"]) == [PEER, "standard", "mlp"]
    assert case["contestants"][PEER]["fastest_ms"] == 1e3 * min(case["samples"][0][PEER])


@pytest.mark.parametrize(
    ("owner", "method", "is_mlp"),
    [
        (Player, "__init__", lambda player, contestant, setting: contestant.variant == "mlp"),
        (Player, "cache", lambda player, *case: player.contestant.variant == "mlp"),
        (Steps, "__call__", lambda steps: steps.nbytes == 0),
    ],
)
def test_a_contestant_that_fails_is_reported_and_the_others_go_on(
    run: Run, monkeypatch: pytest.MonkeyPatch, owner: type, method: str, is_mlp: Callable[..., bool]
):
    """When its model is made, when its cache is filled, or in a step."""
    whole = getattr(owner, method)

    def failing(*args: Any) -> Any:
        if is_mlp(*args):
            raise RuntimeError("no such luck")
        return whole(*args)

    monkeypatch.setattr(owner, method, failing)
    code, folder = run("--batches", "1", "--lengths", "8", "--variants", "standard", "mlp", "--patterns", "uniform")
    assert code == 1
    rows = cases_of(folder)["step", 1, 8]["contestants"]
    assert "no such luck" in rows["mlp"]["failure"]
    assert rows[PEER]["ratio"] == 1 and rows["standard"]["ratio"] > 0
    assert "| mlp | failed |" in (folder / "decode-tiny-fp32-cpu.md").read_text()


def test_nothing_begins_when_the_time_is_up(run: Run, capsys: pytest.CaptureFixture[str]):
    code, folder = run("--batches", "1", "--lengths", "8", "--variants", "mlp", "--seconds", "0")
    assert code == 0
    assert not folder.exists()
    assert "step, 1 x 8: no time left" in capsys.readouterr().out


def test_no_table_of_nothing():
    assert markdown([], PEER) == ""


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"variants": ("nosuch",)}, "--variants nosuch: choose from"),
        ({"static": ("nosuch",)}, "--static nosuch: choose from"),
        ({"size": "80m"}, "80m"),
        ({"size": "1.7b"}, "--size 1.7b has query/key norms"),
        ({"batches": ()}, "--batches: give one or more"),
        ({"lengths": (8, 0)}, "--lengths: each must be at least 1"),
        ({"steps_a_turn": 0}, "--steps-a-turn"),
        ({"steps": 5}, "--steps 5: it must be a multiple of --steps-a-turn 4"),
        ({"patterns": ("1:x",)}, "1:x"),
    ],
)
def test_bad_input(flags: dict[str, Any], expected: str):
    with pytest.raises(UserError, match=expected) as refused:
        decode.Arguments(**flags)
    assert "\n" not in str(refused.value)


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="no GPU here; give --device cpu"):
        decode.Arguments(device="cuda")
