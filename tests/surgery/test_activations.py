"""What is run layer by layer, and from any layer on, is the model; with replacements, it is the hybrid as a model."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from deconattn.analysis.losses import position_losses, token_losses
from deconattn.model.decoder import Decoder
from deconattn.surgery.activations import Activations
from deconattn.surgery.sensitivity import losses_from
from deconattn.surgery.subject import Subject
from tests.surgery.conftest import VARIANTS, OpenSubject

OWN = ["4*standard", "standard,fixedseq,staticemb,mlp", "rndemb,standard,fixedseq,standard"]


def whole(subject: Subject, ids: Tensor) -> Tensor:
    """The losses of the model by its own forward pass, [N, L - 1]."""
    return position_losses(subject.decoder, subject.head, ids, "model").losses


@pytest.mark.parametrize("pattern", OWN)
def test_losses_from_any_layer_are_the_models(
    pattern: str, make_run: Callable[[str], Path], open_run: OpenSubject
) -> None:
    subject = open_run(make_run(pattern))
    expected = whole(subject, subject.held_out).mean(dim=1)
    activations = Activations(subject, subject.held_out)
    for layer in range(subject.depth):
        found = torch.tensor(losses_from(activations, {}, {}), dtype=torch.float64)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5, msg=f"from layer {layer}")
        activations.advance()


@pytest.mark.parametrize("pattern", OWN)
def test_a_layers_outputs_are_what_its_mixer_gives_in_the_model(
    pattern: str, make_run: Callable[[str], Path], open_run: OpenSubject
) -> None:
    subject = open_run(make_run(pattern))
    seen: list[Tensor] = []
    for block in subject.decoder.blocks:
        block.self_attn.register_forward_hook(lambda _, __, output: seen.append(output[: len(subject.held_out)]))
    with torch.no_grad():
        subject.decoder.forward_embedded(subject.embed(subject.held_out), subject.length)
    expected, activations = list(seen), Activations(subject, subject.held_out)
    for layer in range(subject.depth):
        torch.testing.assert_close(activations.outputs(), expected[layer], rtol=0, atol=1e-5)
        activations.advance()


@pytest.mark.parametrize("layer", [0, 2, 3])
@pytest.mark.parametrize("variant", VARIANTS)
def test_one_layer_replaced_is_the_hybrid_as_a_model(
    variant: str, layer: int, model: Path, open_run: OpenSubject
) -> None:
    subject = open_run(model)
    mixer = subject.fresh_mixer(layer, variant, 7)
    activations = Activations(subject, subject.held_out)
    for _ in range(layer):
        activations.advance()
    found = losses_from(activations, {layer: mixer}, {layer: variant})

    variants = tuple(variant if place == layer else "standard" for place in range(subject.depth))
    hybrid = Decoder(replace(subject.config, layer_variants=variants))
    weights = subject.decoder.state_dict()
    weights = {name: value for name, value in weights.items() if f"layers.{layer}.self_attn." not in name}
    weights |= {f"layers.{layer}.self_attn.{name}": value for name, value in mixer.state_dict().items()}
    names = {"random": "fixed_embeddings", "text": "fixed_ids"}
    weights |= {names[stream]: subject.streams[stream] for stream in hybrid.streams}
    hybrid.load_state_dict(weights)
    with torch.no_grad():
        expected = token_losses(subject.head, hybrid(subject.held_out), subject.held_out).mean(dim=1)
    torch.testing.assert_close(torch.tensor(found, dtype=torch.float64), expected, rtol=0, atol=1e-5)
    assert (variant, layer) == ("staticemb", 0) or not torch.allclose(
        expected, whole(subject, subject.held_out).mean(dim=1), atol=1e-4
    )


def test_static_embeddings_are_the_first_layers_own_input(model: Path, open_run: OpenSubject) -> None:
    subject = open_run(model)
    activations = Activations(subject, subject.held_out)
    found = losses_from(activations, {0: subject.fresh_mixer(0, "staticemb", 0)}, {0: "staticemb"})
    assert found == pytest.approx(losses_from(activations, {}, {}), abs=1e-6)


def test_a_fresh_mixer_has_what_it_shares_with_the_layer(model: Path, open_run: OpenSubject) -> None:
    subject = open_run(model)
    own = dict(subject.mixer(1).named_parameters())
    for name, parameter in subject.fresh_mixer(1, "nonapproximate", 0).named_parameters():
        assert torch.equal(parameter, own[name]), name
    first, again, other = (subject.fresh_mixer(1, "mlp", seed).gate_proj.weight for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
