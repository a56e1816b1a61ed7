"""Fixed streams held over a step: losses and gradients as of micro-batches that each carry them, exact in float64."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from deconattn.mixers import registry
from deconattn.mixers.registry import register
from deconattn.model.causal_lm import CausalLM
from deconattn.model.held_streams import HeldStreams, StreamTrial, held_bytes, must_be_tried
from tests.mixers.models import BASE, ThirdParty, build_model

PATTERNS = (
    ("fixedseq",) * 3,
    ("rndemb",) * 3,
    ("standard", "rndemb", "mlp", "fixedseq", "nonapproximate"),
    ("staticemb", "fixedseq", "approximate", "rndemb", "staticemb"),
    ("rndemb", "thirdparty", "fixedseq", "thirdparty", "standard"),
)
LENGTH, STEPS = 40, 4


def micro_batch(number: int, documents: bool) -> tuple[Tensor, ...]:
    """ids and labels [2, LENGTH]; with documents the positions and numbers of two or three in each row."""
    generator = torch.Generator().manual_seed(number)
    ids, labels = torch.randint(BASE.vocab_size, (2, 2, LENGTH), generator=generator)
    if not documents:
        return ids, labels
    starts = torch.rand(2, LENGTH, generator=generator) < 0.05
    starts[:, 0] = False
    indices = torch.arange(LENGTH).expand_as(starts)
    return ids, labels, indices - (indices * starts).cummax(dim=1).values, starts.long().cumsum(dim=1)


def step(model: CausalLM, streams: HeldStreams | None, documents: bool = False) -> tuple[list[float], list[Tensor]]:
    """Losses of a step's micro-batches, and the gradients of all parameters."""
    losses = []
    for number in range(STEPS):
        if streams:
            streams.last = number == STEPS - 1
        loss = model(*micro_batch(number, documents), run=streams).total
        loss.backward()
        losses.append(float(loss.detach()))
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    model.zero_grad()
    return losses, gradients


@pytest.fixture(autouse=True)
def third_party(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    register("thirdparty")(ThirdParty)


@pytest.mark.parametrize(
    ("variants", "documents"),
    [
        pytest.param(variants, masked, marks=[] if masked == (index > 0) and index % 2 == 0 else pytest.mark.slow)
        for index, variants in enumerate(PATTERNS)
        for masked in (False, True)
    ],
)
def test_as_beside_each_micro_batch(variants: tuple[str, ...], documents: bool) -> None:
    model = build_model(variants)
    losses, gradients = step(model, None, documents)
    for checkpointing in (False, True):
        model.model.activation_checkpointing = checkpointing
        ours, theirs = step(model, HeldStreams(), documents)
        assert_close(ours, losses, rtol=1e-12, atol=0)
        for one, other in zip(theirs, gradients, strict=True):
            assert_close(one, other, rtol=1e-12, atol=1e-12 * float(other.abs().max()))


def test_the_streams_run_twice_and_in_the_last_micro_batch_with_a_graph() -> None:
    model = build_model(("fixedseq",) * 2)
    seen: list[tuple[int, bool]] = []
    model.model.blocks[0].mlp.register_forward_hook(lambda _, __, rows: seen.append((len(rows), rows.requires_grad)))
    step(model, HeldStreams())
    assert seen == [(1, False), *[(2, True)] * 3, (1, True), (2, True)]


def test_gradients_of_bf16_are_summed_in_fp32() -> None:
    """A step of many micro-batches: as near to float64 as beside each, whose sums DeepSpeed has in fp32."""
    model = build_model(("rndemb",) * 2)
    exact = step(model, HeldStreams())[1]
    streams = HeldStreams()
    model.bfloat16()
    seen: list[torch.dtype] = []
    for number in range(3):
        streams.last = False
        model(*micro_batch(number, False), run=streams).total.backward()
        seen += [one.total.dtype for sums in streams._sums.values() for one in sums if one.total is not None]
    assert set(seen) == {torch.float32}
    streams.last = True
    model(*micro_batch(3, False), run=streams).total.backward()
    for index, (parameter, gradient) in enumerate(zip(model.parameters(), exact, strict=True)):
        if "q_proj.weight" in list(dict(model.named_parameters()))[index]:
            assert parameter.grad is not None
            assert float((parameter.grad - gradient).norm()) < 0.1 * float(gradient.norm())


def test_what_is_held_is_as_counted() -> None:
    for variants in (("fixedseq",) * 2, ("rndemb", "standard", "fixedseq")):
        model, streams = build_model(variants, max_position_embeddings=LENGTH).float(), HeldStreams()
        model(*micro_batch(0, False), run=streams).total.backward()
        held = [one for parts in streams._held.values() for one in parts]
        held += [one.total for sums in streams._sums.values() for one in sums if one.total is not None]
        assert sum(one.nbytes for one in held) == held_bytes(model.config, LENGTH, 4)


class Meeting(ThirdParty):
    """Lets the batch into the fixed stream."""

    fixed_stream = None  # type: ignore[assignment]
    needs_static_embeddings = False

    def forward(self, hidden: Tensor, static: Tensor | None, context: object) -> Tensor:
        return self.o_proj(self.v_proj(hidden)).cumsum(1) / 64 + 1e-4 * hidden.mean(0, keepdim=True)


class Drawing(Meeting):
    """Draws random numbers in training."""

    def forward(self, hidden: Tensor, static: Tensor | None, context: object) -> Tensor:
        return self.o_proj(torch.nn.functional.dropout(self.v_proj(hidden), 0.01, self.training)).cumsum(1) / 64


@pytest.mark.parametrize(
    ("mixer", "differs"),
    [(Meeting, True), (Drawing, True), (ThirdParty, False)],
    ids=["a batch that meets it", "draws", "neither"],
)
def test_a_trial_finds_streams_that_are_not_the_same_each_time(mixer: type[ThirdParty], differs: bool) -> None:
    registry._REGISTRY["tried"] = mixer
    variants = ("tried", "fixedseq")
    assert must_be_tried(variants) and not must_be_tried(("fixedseq", "tried" if not mixer.fixed_stream else "mlp"))
    model, trial = build_model(variants, num_key_value_heads=4).float(), StreamTrial()
    with torch.no_grad():
        for number in range(2):
            model(*micro_batch(number, True), run=trial)
    assert trial.differs == differs
