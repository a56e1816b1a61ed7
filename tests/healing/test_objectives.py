"""Objectives of a distillation against their definitions in float64, with every gradient."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from deconattn.checkpoint.slice_file import Part
from deconattn.healing.objectives import LayerObjective, LogitsObjective
from deconattn.healing.source import Source
from deconattn.healing.teacher import Documents, Teacher
from deconattn.layers.config import ModelConfig
from deconattn.model.causal_lm import CausalLM
from deconattn.model.init import initialize
from deconattn.model.recompute import recompute
from deconattn.parallel.topology import Topology

LENGTH, ROWS, WORDS = 12, 3, 40
NONE: Documents = (None, None, None)


class InMemory(Source):
    """Weights of a model in this process."""

    def __init__(self, model: CausalLM) -> None:
        self.folder, self.config, self.origin = Path("memory"), model.config, {}
        self._tensors = model.state_dict()
        self.shapes = {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}

    def read(self, name: str, part: Part | None, first: int, last: int) -> Tensor:
        assert part is None
        return self._tensors[name].flatten()[first:last]

    @property
    def tokenizer(self) -> None:
        return None

    def close(self) -> None: ...


def model(*variants: str, seed: int = 0, **changes: Any) -> CausalLM:
    config = ModelConfig(
        **{
            "vocab_size": WORDS,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": len(variants),
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 4,
            "max_position_embeddings": LENGTH,
            "layer_variants": variants,
            "initializer_range": 0.3,
        }
        | changes
    )
    made = CausalLM(config)
    initialize(made, seed, torch.arange(LENGTH) % WORDS)
    return made.double()


def teacher_of(source: CausalLM) -> Teacher:
    return Teacher(InMemory(source), Topology(), False, LENGTH, "cpu", torch.float64)


def tokens() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(WORDS, (ROWS, LENGTH + 1), generator=generator)
    labels = ids[:, 1:].clone()
    labels[0, :4] = -100
    return ids[:, :-1], labels


def documents(masked: bool) -> Documents:
    if not masked:
        return NONE
    ids = torch.cat([torch.zeros(5), torch.ones(LENGTH - 5)]).long().expand(ROWS, -1)
    positions = torch.cat([torch.arange(5), torch.arange(LENGTH - 5)]).expand(ROWS, -1)
    return positions, ids, None


def gradients(total: Tensor, of: CausalLM) -> dict[str, Tensor]:
    of.zero_grad()
    total.backward()
    return {name: p.grad.clone() for name, p in of.named_parameters() if p.grad is not None}


STUDENTS = [
    ("standard", "mlp", "approximate", "standard"),
    ("fixedseq", "standard", "rndemb", "nonapproximate"),
    ("staticemb", "fixedseq", "staticemb", "standard"),
]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("variants", STUDENTS)
@pytest.mark.parametrize("of_teacher", [("standard",) * 4, ("fixedseq", "standard", "staticemb", "standard")])
def test_each_layer_gets_what_the_teachers_got(
    variants: tuple[str, ...], of_teacher: tuple[str, ...], masked: bool
) -> None:
    student, source = model(*variants), model(*of_teacher, seed=9)
    ids, labels = tokens()
    given = documents(masked)
    loss = student(ids, labels, *given, objective=LayerObjective(teacher_of(source)))
    found = gradients(loss.total, student)
    expected = layer_errors(student, source, ids, given)
    wanted = gradients(expected, student)
    assert loss.labels == ROWS * LENGTH
    assert_close(loss.total, expected, rtol=1e-12, atol=0)
    assert found.keys() == wanted.keys()
    assert all(".self_attn." in name or "input_layernorm" in name for name in found)
    for name, gradient in found.items():
        assert_close(gradient, wanted[name], rtol=1e-10, atol=1e-12)


def layer_errors(student: CausalLM, source: CausalLM, ids: Tensor, given: Documents) -> Tensor:
    """The definition, layer by layer, with all rows in every pass: the stream's are the student's own."""
    theirs, ours = source.model, student.model
    rows, errors = len(ids), []
    with torch.no_grad():
        hidden, stream = theirs.embed(ids), ours.embed(ids)[rows:]
        their_static, static = hidden.clone(), ours.embed(ids)
        their_context, context = theirs.context(LENGTH, hidden, *given), ours.context(LENGTH, static, *given)
        alone = ours.context(LENGTH, stream)
    for their_block, block in zip(theirs.blocks, ours.blocks, strict=True):
        with torch.no_grad():
            _, *their_inputs = their_block.mixer_inputs(hidden, their_static)
            target = their_block.self_attn(*their_inputs, their_context)[:rows]
        _, *inputs = block.mixer_inputs(torch.cat([hidden[:rows], stream]), static)
        mixed = block.self_attn(*inputs, context)[:rows]
        errors.append((((mixed - target) ** 2).sum(-1) / (target**2).sum(-1)).sum())
        with torch.no_grad():
            hidden = their_block(hidden, their_static, their_context)
            if len(stream):
                stream = block(stream, static[rows:], alone)
    return torch.stack(errors).mean()


def test_recomputed_layers_have_the_same_gradients() -> None:
    source = model("standard", "standard", seed=9)
    ids, labels = tokens()
    found = []
    for part in ("none", "layer", "mixer"):
        student = model("fixedseq", "approximate")
        recompute(student.model, part)
        found.append(gradients(student(ids, labels, objective=LayerObjective(teacher_of(source))).total, student))
    for other in found[1:]:
        assert all(torch.equal(gradient, other[name]) for name, gradient in found[0].items())


@pytest.mark.parametrize("masked", [False, True])
def test_predictions(masked: bool) -> None:
    """The teacher may have other dimensions, and other layers."""
    student, source = (
        model("fixedseq", "mlp"),
        model("standard", "rndemb", "standard", seed=9, hidden_size=24, head_dim=6),
    )
    ids, labels = tokens()
    given = documents(masked)
    loss = student(ids, labels, *given, objective=LogitsObjective(teacher_of(source), 2.0))
    found = gradients(loss.total, student)
    theirs = torch.log_softmax(source.lm_head(source.model(ids, *given)) / 2, -1).detach()
    ours = torch.log_softmax(student.lm_head(student.model(ids, *given)) / 2, -1)
    expected = 4 * (theirs.exp() * (theirs - ours)).sum(-1)[labels != -100].sum()
    assert loss.labels == (labels != -100).sum()
    assert_close(loss.total, expected, rtol=1e-12, atol=0)
    for name, gradient in gradients(expected, student).items():
        assert_close(found[name], gradient, rtol=1e-9, atol=1e-12)


def test_its_own_teacher_teaches_nothing() -> None:
    student = model("standard", "fixedseq", tie_word_embeddings=True)
    ids, labels = tokens()
    for objective in (LayerObjective(teacher_of(student)), LogitsObjective(teacher_of(student), 1.0)):
        loss = student(ids, labels, objective=objective)
        assert loss.total.item() == pytest.approx(0, abs=1e-20)
        assert all(gradient.abs().max() < 1e-12 for gradient in gradients(loss.total, student).values())
