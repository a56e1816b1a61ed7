"""Muon: torch's own steps, wherever ZeRO and tensor parallelism have put the matrices."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from deconattn.checkpoint.format import open_checkpoint, read_checkpoint, steps_in
from deconattn.config.command_line import parse_training_flags
from deconattn.config.deepspeed import deepspeed_config
from deconattn.errors import UserError
from deconattn.model.causal_lm import CausalLM
from deconattn.train.muon import MuonWithAdamW
from deconattn.train.optimizers import make_optimizer
from tests.conftest import ROOT
from tests.ranks import Ranks
from tests.train.conftest import losses
from tests.train.jobs import run_job, train

MUON = ["--optimizer", "muon", "--lr", "3e-3", "--variant", "fixedseq", "--pattern", "1:1", "--qk-norm"]


def same_state(one: Path, other: Path) -> bool:
    """Weights and moments of two checkpoints, bit for bit."""
    kinds = ("weights", "exp_avg", "exp_avg_sq", "momentum_buffer")
    left, right = ({kind: dict(read_checkpoint(run).tensors(kind)) for kind in kinds} for run in (one, other))
    return all(
        left[kind].keys() == right[kind].keys()
        and left[kind]
        and all(torch.equal(left[kind][name], right[kind][name]) for name in left[kind])
        for kind in kinds
    )


def made(shapes: list[tuple[int, int]]) -> tuple[list[nn.Parameter], nn.Parameter, MuonWithAdamW]:
    generator = torch.Generator().manual_seed(0)
    matrices = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    vector = nn.Parameter(torch.ones(5))
    adamw = torch.optim.AdamW([vector], lr=0.1, fused=True)
    optimizer = MuonWithAdamW({"params": matrices, "lr": 0.1, "weight_decay": 0.1}, adamw)
    optimizer.locate(None, 0, None)
    return matrices, vector, optimizer


def test_steps_are_torchs_to_the_bit() -> None:
    shapes = [(6, 4), (4, 9), (8, 8)]
    matrices, vector, optimizer = made(shapes)
    others, other_vector, _ = made(shapes)
    muon = torch.optim.Muon(others, lr=0.1, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW([other_vector], lr=0.1, fused=True)
    for step in range(3):
        generator = torch.Generator().manual_seed(step)
        for one, other in zip((*matrices, vector), (*others, other_vector), strict=True):
            one.grad = torch.randn(one.shape, generator=generator)
            other.grad = one.grad.clone()
        for each in (optimizer, muon, adamw):
            each.step()
        for one, other in zip((*matrices, vector), (*others, other_vector), strict=True):
            assert torch.equal(one, other)


def test_a_skipped_step_changes_nothing() -> None:
    matrices, vector, optimizer = made([(6, 4)])
    for found, bad in ((0.0, 1.0), (1.0, float("nan"))):
        for parameter in (*matrices, vector):
            parameter.grad = torch.full_like(parameter, bad)
        before = [parameter.detach().clone() for parameter in (*matrices, vector)]
        optimizer.found_inf = torch.tensor(found)
        momentum = optimizer.state[matrices[0]].get("momentum_buffer", torch.zeros(0)).clone()
        optimizer.step()
        changed = [not torch.equal(p, old) for p, old in zip((*matrices, vector), before, strict=True)]
        assert changed == [not found] * 2
    assert torch.equal(optimizer.state[matrices[0]]["momentum_buffer"], momentum)


def test_tables_and_vectors_are_adamws() -> None:
    from deconattn.config.flags import model_config

    flags = parse_training_flags(["--optimizer", "muon", "--qk-norm"])
    model = CausalLM(model_config(flags.model, 300, flags.data.seq_len))
    named = {parameter: name for name, parameter in model.named_parameters()}
    optimizer = make_optimizer(model, flags.optimization)
    muons, *others = ([named[p] for p in group["params"]] for group in optimizer.param_groups)
    assert muons and all(".layers." in name and "proj.weight" in name for name in muons)
    assert sorted(others[0]) == ["lm_head.weight", "model.embed_tokens.weight"]
    assert all(model.get_parameter(name).ndim == 1 for name in others[1])
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.1, 0.0]


@pytest.fixture(scope="module")
def single(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run in one process, without ZeRO."""
    from tests.conftest import SMALL

    run = tmp_path_factory.mktemp("single")
    run_job(["--data", str(corpus), *SMALL, *MUON, "--zero", "0", "--save", str(run)])
    return run


def test_it_trains(single: Path) -> None:
    found = losses(single)
    assert found[6] < found[1] - 0.05
    checkpoint = open_checkpoint(single)
    momenta = dict(checkpoint.tensors("momentum_buffer"))
    assert momenta.keys().isdisjoint(dict(checkpoint.tensors("exp_avg_sq")))
    assert all(momentum.any() for momentum in momenta.values())
    assert json.loads((single / "config.json").read_text())["flags"]["optimization"]["optimizer"] == "muon"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "flags"),
    [
        (2, "--zero 1"),
        (1, "--zero 1"),
        (1, "--zero 3"),
        (2, "--zero 0"),
        (2, "--zero 2"),
        (2, "--zero 3"),
        (3, "--zero 3 --global-batch-size 6 --micro-batch-size 1"),
        (2, "--tp 2"),
        (2, "--cp 2"),
        (2, "--pp 2 --zero 1"),
        (2, "--zero 1 --precision bf16"),
        (2, "--zero 3 --precision bf16"),
        (4, "--tp 2 --zero 1 --micro-batch-size 2"),
        (4, "--tp 2 --zero 3 --micro-batch-size 2"),
    ],
)
def test_the_same_run_on_every_topology(
    small: list[str], single: Path, tmp_path: Path, ranks: Callable[[int], Ranks], count: int, flags: str
) -> None:
    run, expected = tmp_path / "run", single
    if "--global-batch-size" in flags:
        expected = tmp_path / "one"
        run_job([*small, *MUON, *flags.split(), "--zero", "0", "--save", str(expected)])
    ranks(count)(train, arguments=[*small, *MUON, *flags.split(), "--save", str(run)])
    # bf16 inside: what differs by a rounding of fp32 before may differ by one of bf16 after.
    assert losses(run) == pytest.approx(losses(expected), rel=5e-3 if "bf16" in flags else 1e-4)


@pytest.mark.parametrize("zero", ["1", pytest.param("3", marks=pytest.mark.slow)])
def test_a_stop_changes_nothing_and_moments_move_to_another_topology(
    small: list[str], tmp_path: Path, ranks: Callable[[int], Ranks], zero: str
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    flags = [*small, *MUON, "--zero", zero]
    ranks(2)(train, arguments=[*flags, "--save", str(whole)])
    ranks(2)(train, arguments=["stop=3", *flags, "--save", str(cut)])
    assert [folder.name for folder in steps_in(cut)] == ["step-3"]
    ranks(2)(train, arguments=["--save", str(cut), "--resume"])
    assert losses(cut) == losses(whole)
    assert same_state(whole / "checkpoints/step-6", cut / "checkpoints/step-6")
    run_job(["--save", str(cut), "--resume", "--zero", "0", "--steps", "7"])
    assert len(losses(cut)) == 7


def test_another_optimizer_has_other_moments(small: list[str], tmp_path: Path) -> None:
    run_job(["stop=1", *small, "--save", str(tmp_path)])
    with pytest.raises(UserError, match="--optimizer adamw .* muon"):
        run_job(["--save", str(tmp_path), "--resume", "--optimizer", "muon"])


def test_offloading_is_refused() -> None:
    flags = ["--optimizer", "muon", "--deepspeed-config", str(ROOT / "ds_configs/zero2_offload.json")]
    with pytest.raises(UserError, match="offload_optimizer does not go with --optimizer muon"):
        deepspeed_config(parse_training_flags(flags), 1)
