"""What every mixer promises, over every registered variant and one of a third party."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from deconattn.errors import UserError
from deconattn.layers.config import ModelConfig
from deconattn.layers.rotary import Rotary
from deconattn.mixers import (
    Mixer,
    MixerContext,
    ProjectedMixer,
    Workload,
    mixer_class,
    register,
    registry,
    variant_names,
)
from deconattn.mixers.plugins import load_plugins, names_in_process
from deconattn.ops import reference
from deconattn.ops.documents import Documents
from deconattn.parallel.tensor import cut_tensors
from tests.mixers.models import (
    BASE,
    EVERY,
    HEADS,
    LENGTHS,
    OURS,
    PATTERNS,
    VARIANTS,
    ThirdParty,
    build_model,
    mixes,
    random_tokens,
)


def positions_in(documents: Tensor) -> Tensor:
    """[R, L] document ids -> positions within each document, by the plainest loop."""
    positions = torch.zeros_like(documents)
    for row, ids in enumerate(documents.tolist()):
        for t in range(1, len(ids)):
            positions[row, t] = positions[row, t - 1] + 1 if ids[t] == ids[t - 1] else 0
    return positions


def build_context(config: ModelConfig, rows: int, length: int, masked: bool, dtype: torch.dtype) -> MixerContext:
    """For `rows` sequences and both fixed streams; where masked, documents of about 40 tokens, other in each row."""
    positions = torch.arange(length)[None]
    documents = None
    if masked:
        generator = torch.Generator().manual_seed(length)
        ids = (torch.rand(rows, length, generator=generator) < 1 / 40).long().cumsum(dim=1)
        ids = torch.cat([ids, torch.zeros(2, length, dtype=torch.long)])
        positions = positions_in(ids)
        documents = Documents(ids, positions)
    return MixerContext(Rotary.of(config, positions, dtype), documents, {"random": -2, "text": -1})


def build_mixer(variant: str, **changes: object) -> Mixer:
    """In float64, with weights large enough for sharp maps and nothing at a special value."""
    mixer = mixer_class(variant)(replace(BASE, **changes)).double()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.double) * 0.3)
        for name, parameter in mixer.named_parameters():
            if "norm" in name:
                parameter.add_(1)
    return mixer


def build_inputs(rows: int, length: int, dtype: torch.dtype = torch.double) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states and static embeddings (both ask for gradients), and a gradient for the output."""
    generator = torch.Generator().manual_seed(length)
    drawn = torch.randn(3, rows, length, BASE.hidden_size, generator=generator, dtype=torch.double).to(dtype)
    return drawn[0].clone().requires_grad_(), drawn[1].clone().requires_grad_(), drawn[2].clone()


def by_the_map(mixer: Mixer, hidden: Tensor, static: Tensor, context: MixerContext) -> Tensor:
    """A @ V through the output projection, A as the mixer reports it."""
    assert isinstance(mixer, ProjectedMixer)
    weights = mixer.attention_map(hidden, static, context)
    assert weights is not None
    return mixer.output(weights @ mixer.per_query_head(mixer.values(hidden)))


def gradients(output: Tensor, mixer: Mixer, hidden: Tensor, static: Tensor, upstream: Tensor) -> list[Tensor]:
    wanted = [hidden, static, *mixer.parameters()]
    return list(torch.autograd.grad(output, wanted, upstream, allow_unused=True, materialize_grads=True))


def test_the_seven_variants_are_registered():
    assert set(OURS) <= set(variant_names())


def test_a_name_is_taken_once():
    class Impostor(ThirdParty):
        pass

    with pytest.raises(ValueError, match="'standard' is already registered"):
        register("standard")(Impostor)
    assert mixer_class("standard") is not Impostor


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("masked", [False, True], ids=["plain", "documents"])
@pytest.mark.parametrize("variant", filter(mixes, VARIANTS))
def test_forward_and_gradients_are_those_of_the_map(variant: str, masked: bool, heads: str):
    mixer = build_mixer(variant, **HEADS[heads])
    for length in LENGTHS:
        context = build_context(mixer.config, 2, length, masked, torch.double)
        hidden, static, upstream = build_inputs(4, length)
        output = mixer(hidden, static, context)
        expected = by_the_map(mixer, hidden, static, context)
        assert_close(output, expected, rtol=1e-10, atol=1e-10)
        got = gradients(output, mixer, hidden, static, upstream)
        wanted = gradients(expected, mixer, hidden, static, upstream)
        names = ["hidden", "static", *(name for name, _ in mixer.named_parameters())]
        for name, ours, theirs in zip(names, got, wanted, strict=True):
            assert_close(ours, theirs, rtol=1e-10, atol=1e-10, msg=lambda m, n=name, x=length: f"{n}, length {x}: {m}")


@pytest.mark.parametrize("masked", [False, True], ids=["plain", "documents"])
@pytest.mark.parametrize("variant", EVERY)
def test_map_is_causal_and_rows_sum_to_one(variant: str, masked: bool):
    mixer = build_mixer(variant, num_key_value_heads=2)
    context = build_context(mixer.config, 2, 130, masked, torch.double)
    hidden, static, _ = build_inputs(4, 130)
    weights = mixer.attention_map(hidden, static, context)
    principles = type(mixer).principles
    if weights is None and principles is not None and principles.mixes_tokens:
        return  # by a rule that has no such map
    if weights is None:  # then nothing may be mixed: shuffled tokens come out shuffled
        shuffled = torch.randperm(130, generator=torch.Generator().manual_seed(0))
        output = mixer(hidden[:, shuffled], static[:, shuffled], context)
        assert_close(output, mixer(hidden, static, context)[:, shuffled])
        return
    assert weights.shape == (4, 4, 130, 130)
    assert (weights >= 0).all()
    assert not weights.triu(1).any()
    assert_close(weights.sum(dim=-1), torch.ones(4, 4, 130, dtype=torch.double), rtol=1e-12, atol=1e-12)
    if masked:
        ids = context.documents.ids
        assert len(ids[0].unique()) > 2
        assert not weights.masked_fill((ids[:, None, :, None] == ids[:, None, None, :]), 0).any()


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("masked", [False, True], ids=["plain", "documents"])
@pytest.mark.parametrize("variant", EVERY)
def test_blocks_of_the_map_are_its_rows(variant: str, masked: bool, heads: str):
    mixer = build_mixer(variant, **HEADS[heads])
    context = build_context(mixer.config, 2, 130, masked, torch.double)
    hidden, static, _ = build_inputs(4, 130)
    whole = mixer.attention_map(hidden, static, context)
    for size in (1, 48, 130, 200):
        blocks = list(mixer.map_blocks(hidden, static, context, size))
        if whole is None:
            assert blocks == []
            continue
        assert [block.start for block in blocks] == list(range(0, 130, size))
        assert blocks[-1].stop == 130
        for block in blocks:
            assert block.stop - block.start == block.weights.shape[2] <= size
            assert not whole[:, :, block.start : block.stop, block.stop :].any()
            rows = whole[:, :, block.start : block.stop, : block.stop]
            assert_close(block.weights, rows, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("masked", [False, True], ids=["plain", "documents"])
@pytest.mark.parametrize("variant", filter(mixes, OURS))
def test_the_map_is_made_of_the_scores(variant: str, masked: bool):
    mixer = build_mixer(variant, num_key_value_heads=2)
    context = build_context(mixer.config, 2, 130, masked, torch.double)
    hidden, static, _ = build_inputs(4, 130)
    visible = reference.allowed(130, None if context.documents is None else context.documents.ids[:, None])
    found = [block.scores for block in mixer.map_blocks(hidden, static, context, 48)]
    if variant == "nonapproximate":
        logits = torch.cat(found, dim=2).transpose(2, 3)
        assert logits.shape == (4, 4, 1, 130)
        weights = logits.exp() * visible
    else:
        logits = torch.cat([nn.functional.pad(one, (0, 130 - one.shape[3]), value=-torch.inf) for one in found], dim=2)
        assert torch.equal(logits.isfinite(), visible.expand_as(logits))
        polynomial = (1 + logits + logits.square() / 2).where(visible, 0)
        weights = polynomial if variant == "approximate" else logits.exp()
    expected = mixer.attention_map(hidden, static, context)
    assert_close(weights / weights.sum(dim=-1, keepdim=True), expected, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("variant", EVERY)
def test_tensor_parallel_parts_sum_to_the_whole(variant: str, heads: str, ranks: int):
    mixer = build_mixer(variant, **HEADS[heads])
    whole = mixer.state_dict()
    for masked in (False, True):
        context = build_context(mixer.config, 2, 65, masked, torch.double)
        hidden, static, _ = build_inputs(4, 65)
        total = torch.zeros_like(hidden)
        for rank in range(ranks):
            part = build_mixer(variant, **HEADS[heads])
            with torch.no_grad():
                for layer, name, shard in cut_tensors(part, mixer.config, rank, ranks):
                    path = next(path for path, module in part.named_modules() if module is layer)
                    getattr(layer, name).copy_(shard.take(whole[f"{path}.{name}".removeprefix(".")]))
                total += part(hidden, static, context)
        assert_close(total, mixer(hidden, static, context), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("variant", EVERY)
def test_num_parameters_is_the_modules(variant: str, heads: str):
    config = replace(BASE, **HEADS[heads])
    mixer = mixer_class(variant)(config)
    assert mixer_class(variant).num_parameters(config) == sum(parameter.numel() for parameter in mixer.parameters())


@pytest.mark.parametrize("variant", EVERY)
def test_forward_flops_grow_by_the_same_amount_with_each_row(variant: str):
    one, two, three = (mixer_class(variant).forward_flops(BASE, Workload(rows, 64)) for rows in (1, 2, 3))
    assert isinstance(one, int)
    assert 0 < two - one == three - two <= one
    assert mixer_class(variant).forward_flops(BASE, Workload(1, 128)) >= 2 * one


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("variant", [*OURS, *EVERY[len(VARIANTS) :]])
def test_activation_bytes_are_what_autograd_keeps(variant: str, dtype: torch.dtype, heads: str):
    mixer = build_mixer(variant, **HEADS[heads]).to(dtype)
    hidden, static, _ = build_inputs(4, 256, dtype)
    context = build_context(mixer.config, 2, 256, False, dtype)
    kept: dict[int, int] = {}  # bytes by storage; they live as long as the output

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = mixer(hidden, static, context)
    for tensor in (*mixer.parameters(), context.rotary.cos, context.rotary.sin):
        kept.pop(tensor.untyped_storage().data_ptr(), None)
    expected = mixer_class(variant).activation_bytes(mixer.config, Workload(4, 256, dtype.itemsize))
    assert sum(kept.values()) == pytest.approx(expected, rel=0.02)
    del output


# The unit is the format's epsilon, plus in any format what fp32 leaves of an angle of 200 radians. A result goes
# through about four roundings in a row (projection, rotation, mixing, output), a gradient through twice as many.
@pytest.mark.parametrize("masked", [False, True], ids=["plain", "documents"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("variant", EVERY)
def test_low_precision_is_close_to_float64(variant: str, dtype: torch.dtype, masked: bool):
    mixer = build_mixer(variant, num_key_value_heads=2).to(dtype)
    exact = build_mixer(variant, num_key_value_heads=2)
    exact.load_state_dict(mixer.state_dict())
    hidden, static, upstream = build_inputs(4, 200, dtype)
    output = mixer(hidden, static, build_context(mixer.config, 2, 200, masked, dtype))
    assert output.dtype == dtype
    got = gradients(output, mixer, hidden, static, upstream)

    hidden, static = hidden.detach().double().requires_grad_(), static.detach().double().requires_grad_()
    context = build_context(exact.config, 2, 200, masked, torch.double)
    expected = exact(hidden, static, context)
    wanted = gradients(expected, exact, hidden, static, upstream.double())

    unit = torch.finfo(dtype).eps + 200 * torch.finfo(torch.float32).eps / 2
    assert (output.double() - expected).norm() <= 4 * unit * expected.norm()
    names = ["hidden", "static", *(name for name, _ in mixer.named_parameters())]
    # Softmax does not see a constant added to all keys: the key bias has no gradient of its own to be close to
    # where queries and keys are not rotated, and a small one where they are.
    scale = max(theirs.norm() / theirs.numel() ** 0.5 for theirs in wanted[2:])
    # A norm of each head divides by what may nearly cancel in its few channels here, which magnifies any rounding: as
    # the exact gradient tells that is given other inputs, by as much as one rounding changes them.
    noise = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    rounded = (hidden.detach() * (1 + unit * noise)).requires_grad_()
    moved = gradients(exact(rounded, static, context), exact, rounded, static, upstream.double())
    for name, ours, theirs, other in zip(names, got, wanted, moved, strict=True):
        floor = scale * theirs.numel() ** 0.5 if name.startswith(("q_proj", "k_proj")) else 0.0
        error = (ours.double() - theirs).norm()
        assert error <= max(8 * unit * max(theirs.norm(), floor), 4 * (other - theirs).norm()), name


@pytest.mark.parametrize("variants", PATTERNS, ids=",".join)
def test_changing_a_token_changes_nothing_before_it(variants: tuple[str, ...]):
    model = build_model(variants)
    changed = (1, 63, 64, 65, 128, 199)
    tokens = random_tokens(1, 200).repeat(1 + len(changed), 1)
    for row, t in enumerate(changed, start=1):
        tokens[row, t] = (tokens[row, t] + 1) % BASE.vocab_size
    with torch.no_grad():
        logits = model.logits(tokens)
    mixing = any(map(mixes, variants))
    for row, t in enumerate(changed, start=1):
        assert_close(logits[row, :t], logits[0, :t], rtol=1e-11, atol=1e-11)
        moved = (logits[row] - logits[0]).abs().amax(dim=-1) > 1e-9
        assert moved[t]
        if t < 199:
            assert moved[t + 1 :].any() == mixing


@pytest.mark.parametrize("variants", PATTERNS, ids=",".join)
def test_rows_of_a_batch_do_not_meet(variants: tuple[str, ...]):
    model = build_model(variants)
    tokens = random_tokens(3, 70)
    with torch.no_grad():
        alone = torch.cat([model.logits(row[None]) for row in tokens])
        assert_close(model.logits(tokens), alone, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("variants", PATTERNS, ids=",".join)
def test_packed_documents_get_what_each_gets_alone(variants: tuple[str, ...]):
    model = build_model(variants)
    packed = ((1, 63, 66, 70), (130, 2, 68))
    tokens = random_tokens(2, 200)
    documents = torch.stack([torch.repeat_interleave(3 * torch.arange(len(row)), torch.tensor(row)) for row in packed])
    positions = positions_in(documents)
    labels = tokens.roll(-1, dims=1)
    labels[:, -1] = -100
    labels[:, :-1][documents[:, 1:] != documents[:, :-1]] = -100

    logits = model.logits(tokens, positions, documents)
    loss = model(tokens, labels, positions, documents)
    gradients = torch.autograd.grad(loss.total, list(model.parameters()), allow_unused=True, materialize_grads=True)

    total = torch.zeros((), dtype=torch.double)
    count = 0
    for row, lengths in enumerate(packed):
        start = 0
        for length in lengths:
            part = slice(start, start + length)
            assert_close(logits[row, part], model.logits(tokens[row : row + 1, part])[0], rtol=1e-10, atol=1e-10)
            alone = model(tokens[row : row + 1, part], labels[row : row + 1, part])
            total, count, start = total + alone.total, count + alone.labels, start + length
    assert loss.labels == count
    assert_close(loss.total, total, rtol=1e-12, atol=0)
    separate = torch.autograd.grad(total, list(model.parameters()), allow_unused=True, materialize_grads=True)
    for (name, _), ours, theirs in zip(model.named_parameters(), gradients, separate, strict=True):
        assert_close(ours, theirs, rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


MINE = """
from deconattn.mixers import Decoding, Standard, register


@register("mine")
class Mine(Standard):
    def forward(self, hidden, static, context):
        return {factor} * super().forward(hidden, static, context)

    decoding = Decoding()
    attention_map = Standard.attention_map
    map_blocks = Standard.map_blocks
"""


def test_one_name_is_one_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Else what is opened with the first file's variant would run the second's."""
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    files = [tmp_path / folder / "mine.py" for folder in ("first", "second", "copy")]
    for file, factor in zip(files, (2, 3, 2), strict=True):
        file.parent.mkdir()
        file.write_text(MINE.format(factor=factor))
    first, second, copy = files
    load_plugins([first])
    mine = mixer_class("mine")
    with pytest.raises(UserError, match=f"'mine' is already registered by Mine in {first}, and Mine in {second} is an"):
        load_plugins([second])
    assert mixer_class("mine") is mine
    [(name, other)] = names_in_process([second]).items()
    assert name == "mine" and other.startswith("mine@") and names_in_process([copy]) == {"mine": "mine"}
    assert (
        mixer_class("mine") is mine and mixer_class(other) is not mine and names_in_process([second]) == {"mine": other}
    )
    load_plugins([first, copy])
    assert mixer_class("mine")(BASE)(torch.ones(1, 1, 32), None, build_context(BASE, 1, 1, False, torch.float)).shape
    failing = tmp_path / "failing.py"
    failing.write_text(MINE.replace('"mine"', '"half"').format(factor=1) + "\n1 / 0\n")
    with pytest.raises(UserError, match="failing.py: ZeroDivisionError"):
        load_plugins([failing])
    assert "half" not in variant_names()
