"""A replacement is fitted to the layer's output: the solution against float64, and that steps bring it nearer."""

from pathlib import Path

import pytest
import torch
from torch import nn

from deconattn.surgery import fitting
from deconattn.surgery.activations import Activations
from deconattn.surgery.fitting import (
    RIDGES,
    FitSettings,
    Moments,
    Targets,
    batches_of_steps,
    best_strength,
    error,
    fit,
    output_projection,
    solve,
)
from deconattn.surgery.heads import HeadSplice, has_heads, mixed_heads
from deconattn.surgery.sensitivity import losses_from
from tests.surgery.conftest import VARIANTS, OpenSubject

STEPS = FitSettings(steps=12, batch=2, lr=3e-3, seed=0)


@pytest.fixture
def activations(model: Path, open_run: OpenSubject) -> Activations:
    """Before the second layer."""
    subject = open_run(model, fit_sequences=10)
    found = Activations(subject, subject.fit)
    found.advance()
    return found


def test_weights_are_of_the_residual_stream(activations: Activations) -> None:
    targets = Targets.of(activations)
    outputs = targets.outputs.double()
    after = (activations.hidden.double() + outputs).square().mean(-1, keepdim=True)
    ratio = targets.weights.double() * after
    torch.testing.assert_close(ratio, ratio.flatten()[0].expand_as(ratio), rtol=1e-4, atol=0)
    assert float(targets.error(torch.zeros_like(targets.outputs), slice(None))) == pytest.approx(1, rel=1e-4)
    assert float(targets.error(targets.outputs, slice(None))) == 0


def test_a_layers_own_mixer_has_no_error(activations: Activations) -> None:
    targets = Targets.of(activations)
    assert error(activations.subject.mixer(1), activations, targets) == pytest.approx(0, abs=1e-8)


@pytest.mark.parametrize("strength", [1e-4, 1.0])
def test_solutions_are_the_least_squares(strength: float) -> None:
    torch.manual_seed(0)
    features, left = torch.randn(3, 20, 8, dtype=torch.float64), torch.randn(3, 20, 5, dtype=torch.float64)
    parts = [Moments(8, 5, torch.device("cpu")) for _ in range(2)]
    parts[0].add(features[:1], left[:1])
    parts[1].add(features[1:], left[1:])
    rows, wanted = features.flatten(0, 1), left.flatten(0, 1)
    ridge = (strength * rows.square().sum() / 8).sqrt() * torch.eye(8, dtype=torch.float64)
    expected = torch.linalg.lstsq(torch.cat([rows, ridge]), torch.cat([wanted, torch.zeros(8, 5)])).solution
    both = parts[0] + parts[1]
    torch.testing.assert_close(both.solution(strength), expected)
    change = (rows @ expected - wanted).square().sum() - wanted.square().sum()
    assert both.change(expected) == pytest.approx(float(change))


def test_other_sequences_choose_the_strength() -> None:
    torch.manual_seed(0)

    def moments(truth: torch.Tensor, noise: float, tokens: int) -> Moments:
        features = torch.randn(tokens, 8, dtype=torch.float64)
        found = Moments(8, 5, torch.device("cpu"))
        found.add(features, features @ truth + noise * torch.randn(tokens, 5, dtype=torch.float64))
        return found

    truth = torch.randn(8, 5, dtype=torch.float64)
    assert best_strength(moments(truth, 0.01, 500), moments(truth, 0, 500)) == RIDGES[0]
    noisy = best_strength(moments(truth, 6, 16), moments(truth, 0, 500))
    assert noisy is not None and noisy > RIDGES[0]
    assert best_strength(moments(truth, 0.01, 500), moments(-truth, 0, 500)) is None


@pytest.mark.parametrize("variant", ["mlp", "nonapproximate", "fixedseq"])
def test_the_output_projection_moves_to_the_solution(
    variant: str, activations: Activations, monkeypatch: pytest.MonkeyPatch
) -> None:
    targets = Targets.of(activations)
    mixer = activations.subject.fresh_mixer(1, variant, 0)
    projection = output_projection(mixer, activations)
    assert projection is (mixer.down_proj if variant == "mlp" else mixer.o_proj)
    count = len(activations.ids)
    given = mixer(*activations.inputs(slice(None), mixer))[:count]
    entered = []
    hook = projection.register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0][:count]))
    mixer(*activations.inputs(slice(None), mixer))
    hook.remove()
    roots = targets.weights.sqrt()
    features, left = (one.detach().double() for one in (entered[0] * roots, (targets.outputs - given) * roots))
    moments = Moments(features.shape[-1], left.shape[-1], torch.device("cpu"))
    moments.add(features, left)
    before = projection.weight.detach().double().clone()

    monkeypatch.setattr(fitting, "best_strength", lambda *_: 1e-2)
    solve(mixer, projection, activations, targets)
    expected = before + moments.solution(1e-2).T
    torch.testing.assert_close(projection.weight.double(), expected, rtol=1e-4, atol=1e-5)

    monkeypatch.setattr(fitting, "best_strength", lambda *_: None)
    solve(mixer, projection, activations, targets)
    torch.testing.assert_close(projection.weight.double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_fitting_brings_every_variant_nearer(variant: str, activations: Activations) -> None:
    targets = Targets.of(activations)
    mixer = activations.subject.fresh_mixer(1, variant, 0)
    errors = [error(mixer, activations, targets)]
    for settings in (FitSettings(0, 2, 1e-3, 0), STEPS):
        fit(mixer, activations, targets, settings)
        errors.append(error(mixer, activations, targets))
    assert errors[0] >= errors[1] > errors[2]
    assert not any(parameter.requires_grad for parameter in mixer.parameters())


def test_what_does_not_end_in_a_projection_is_trained_alone(
    activations: Activations, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixer = activations.subject.fresh_mixer(1, "nonapproximate", 0)
    mixer.register_forward_hook(lambda _, __, output: 2 * output)
    assert output_projection(mixer, activations) is None
    monkeypatch.setattr(fitting, "solve", lambda *_: pytest.fail("there is nothing to solve for"))
    targets = Targets.of(activations)
    before = error(mixer, activations, targets)
    fit(mixer, activations, targets, STEPS)
    assert error(mixer, activations, targets) < before


def test_steps_go_through_all_sequences_and_the_rate_to_zero() -> None:
    found = list(batches_of_steps(FitSettings(10, 3, 1.0, 4), 6))
    for epoch in range(5):
        both = torch.cat([rows for rows, _ in found[2 * epoch : 2 * epoch + 2]])
        assert sorted(both.tolist()) == list(range(6))
    rates = [rate for _, rate in found]
    assert rates[0] == 1 and rates[1:] == sorted(rates[1:], reverse=True) and rates[-1] < 0.05
    assert [len(rows) for rows, _ in batches_of_steps(FitSettings(2, 8, 1.0, 0), 5)] == [5, 5]


def test_a_head_of_the_same_weights_changes_nothing_and_each_head_is_its_own(
    model: Path, open_run: OpenSubject
) -> None:
    subject = open_run(model)
    held_out = Activations(subject, subject.held_out)
    own = subject.mixer(0)
    same = HeadSplice(own, subject.fresh_mixer(0, "standard", 0))
    expected = losses_from(held_out, {}, {})
    for same.head in range(4):
        assert losses_from(held_out, {0: same}, {0: "standard"}) == pytest.approx(expected, abs=1e-6)

    other = subject.fresh_mixer(0, "fixedseq", 0)
    splice = HeadSplice(own, other)
    inputs = held_out.inputs(slice(None), other)
    with torch.no_grad():
        mixed, theirs = (mixed_heads(mixer, *inputs)[: len(subject.held_out)] for mixer in (own, other))
        for splice.head in range(4):
            part = slice(8 * splice.head, 8 * splice.head + 8)
            wanted = mixed.clone()
            wanted[..., part] = theirs[..., part]
            assert isinstance(own.o_proj, nn.Linear)
            given = splice(*inputs)[: len(subject.held_out)]
            torch.testing.assert_close(given, own.o_proj(wanted), rtol=0, atol=1e-5)


def test_heads_are_fitted_to_the_heads_in_whose_place_they_are(activations: Activations) -> None:
    own, other = activations.subject.mixer(1), activations.subject.fresh_mixer(1, "nonapproximate", 0)
    inputs = activations.inputs(slice(None), other)

    def distance() -> float:
        with torch.no_grad():
            left = mixed_heads(other, *inputs) - mixed_heads(own, *inputs)
            return float(left.square().mean())

    before, kept = distance(), other.o_proj.weight.clone()
    HeadSplice(own, other).fit(activations, STEPS)
    assert distance() < before and torch.equal(other.o_proj.weight, kept)


def test_only_heads_as_wide_can_stand_in_the_place(model: Path, open_run: OpenSubject) -> None:
    subject = open_run(model)
    found = {
        name: has_heads(subject.mixer(0), subject.config, name) for name in ("mlp", "approximate", "rndemb", "mamba2")
    }
    assert found == {"mlp": False, "approximate": True, "rndemb": True, "mamba2": False}
