"""The field's mixers against the formulas of their papers, and what each says of itself against what it does.

The contract suite runs over them too, as slow tests; here is what is theirs alone, and little of it takes long.
"""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from deconattn.config.flags import model_config
from deconattn.config.presets import SIZES, size_defaults
from deconattn.layers.config import ModelConfig
from deconattn.layers.rotary import Rotary
from deconattn.mixers import Mixer, MixerContext, Workload, mixer_class, variant_names, zoo_names
from deconattn.mixers.costs import attention_parameters
from deconattn.ops.documents import Documents
from tests.mixers.models import BASE, HEADS
from tests.mixers.test_contract import build_context, build_inputs, build_mixer, gradients, positions_in

ZOO = zoo_names()
DECLARED = (*variant_names(), *ZOO)
LENGTHS = {"mha": (1, 2, 63, 64, 65, 200, 300), "gqa": (2, 64, 130), "gqa_qk_norm": (1, 65, 150)}
"""Tokens by layout of heads; chunks are of 64 or 32, and tiles of more."""


@pytest.mark.parametrize("masked", [False, True], ids=["plain", "documents"])
@pytest.mark.parametrize(
    "heads", [pytest.param(name, marks=[pytest.mark.slow] if name == "mha" else []) for name in HEADS]
)
@pytest.mark.parametrize("variant", ZOO)
def test_forward_and_gradients_are_the_formulas(variant: str, heads: str, masked: bool):
    mixer = build_mixer(variant, **HEADS[heads])
    for length in LENGTHS[heads]:
        context = build_context(mixer.config, 2, length, masked, torch.double)
        hidden, static, upstream = build_inputs(4, length)
        output, expected = mixer(hidden, static, context), mixer.reference(hidden, static, context)
        assert_close(output, expected, rtol=1e-9, atol=1e-9)
        got = gradients(output, mixer, hidden, static, upstream)
        wanted = gradients(expected, mixer, hidden, static, upstream)
        names = ["hidden", "static", *(name for name, _ in mixer.named_parameters())]
        for name, ours, theirs in zip(names, got, wanted, strict=True):
            scale = 1e-9 * max(1.0, float(theirs.abs().max()))
            assert_close(ours, theirs, rtol=1e-9, atol=scale, msg=lambda m, n=name, x=length: f"{n}, length {x}: {m}")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("variant", ZOO)
def test_parameters_are_standard_attentions_within_a_thousandth_of_a_layer(variant: str, size: str):
    config = model_config(size_defaults(size).model, 50_304, 2048)
    target = attention_parameters(config)
    layer = target + 3 * config.hidden_size * config.intermediate_size
    assert abs(mixer_class(variant).num_parameters(config) - target) <= layer / 1000


def plain_context(config: ModelConfig, length: int) -> MixerContext:
    rotary = Rotary.of(config, torch.arange(length)[None], torch.double)
    return MixerContext(rotary, None, {"random": -2, "text": -1})


@pytest.mark.parametrize("variant", DECLARED)
def test_what_it_says_of_mixing_and_of_positions_is_so(variant: str):
    """Two tokens of the past change places: only where positions count does the last token notice."""
    principles = mixer_class(variant).principles
    assert principles is not None
    mixer, context = build_mixer(variant), plain_context(BASE, 12)
    if type(mixer).fixed_stream is not None:
        pytest.skip("its map is another sequence's, which nothing here changes")
    hidden, static, _ = (tensor.detach() for tensor in build_inputs(4, 12))
    before = mixer(hidden, static, context)[:, -1]

    def last_after(change: list[int] | None) -> Tensor:
        changed = [tensor.clone() if change is None else tensor[:, change] for tensor in (hidden, static)]
        if change is None:
            for tensor in changed:
                tensor[:, -2] += 1  # what looks one token back alone is to notice, too
        return mixer(*changed, context)[:, -1]

    assert bool((last_after(None) - before).abs().max() > 1e-9) == principles.mixes_tokens
    swapped = [*range(9), 10, 9, 11]
    assert bool((last_after(swapped) - before).abs().max() > 1e-9) == principles.position_dependent


@pytest.mark.parametrize("variant", DECLARED)
def test_what_it_says_of_its_map_is_so(variant: str):
    """Without sequence dependency the output is linear in the hidden states that are mixed."""
    principles = mixer_class(variant).principles
    mixer, context = build_mixer(variant), plain_context(BASE, 40)
    hidden, static, _ = (tensor.detach() for tensor in build_inputs(4, 40))
    weights = mixer.attention_map(hidden, static, context)
    if principles.softmax_form and principles.mixes_tokens:
        assert weights is not None
    if weights is not None:
        other = hidden.clone()
        other[:2, 3:] += 1
        same = torch.equal(mixer.attention_map(other, static, context)[:2], weights[:2])
        moves_with_hidden = principles.sequence_dependent and principles.current_queries_and_keys
        assert same != moves_with_hidden


@pytest.mark.parametrize("variant", ZOO)
def test_it_is_a_file_of_the_zoo(variant: str):
    mixer = mixer_class(variant)
    assert mixer.__module__ == f"deconattn.mixers.zoo.{variant.replace('-', '_')}"
    assert mixer.splits is not None, "tensor parallelism cuts it"
    assert "arXiv" in (__import__("sys").modules[mixer.__module__].__doc__ or ""), "its paper is named"
    work = [Workload(2, length) for length in (64, 128, 256, 512)]
    held = [mixer.decoding.cache_bytes(mixer, BASE, one) for one in work]
    assert held == sorted(held)
    whole = [Mixer.decoding.cache_bytes(mixer, BASE, one) for one in work]
    a_number_a_head = work[-1].tokens * BASE.num_attention_heads * 4
    assert held[-1] <= whole[-1] * 2 + a_number_a_head, "it keeps no more than keys, values and a gate"


@pytest.mark.parametrize("variant", ZOO)
def test_linear_memory(variant: str):
    """What a pass keeps for the backward pass doubles with the length."""
    kept = []
    for length in (1024, 2048):
        mixer = build_mixer(variant, max_position_embeddings=2048).float()
        hidden, static, _ = build_inputs(1, length, torch.float)
        context = MixerContext(
            Rotary.of(mixer.config, torch.arange(length)[None], torch.float), None, {"random": -2, "text": -1}
        )
        storages: dict[int, int] = {}

        def note(tensor: Tensor, storages: dict[int, int] = storages) -> Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            output = mixer(hidden, static, context)
        kept.append(sum(storages.values()))
        del output
    assert kept[1] <= 2.2 * kept[0]


@pytest.mark.parametrize("variant", ZOO)
def test_a_part_of_a_document_mask_counts(variant: str):
    """Documents that begin anywhere in a chunk: each gets what it gets alone."""
    mixer = build_mixer(variant)
    ids = torch.tensor([[0] * 5 + [1] * 1 + [2] * 70 + [3] * 64 + [4] * 10]).expand(3, -1)
    positions = positions_in(ids)
    hidden, static, _ = (tensor.detach() for tensor in build_inputs(3, 150))
    packed = MixerContext(
        Rotary.of(mixer.config, positions, torch.double), Documents(ids, positions), {"random": -2, "text": -1}
    )
    together = mixer(hidden, static, packed)
    for start, stop in ((0, 5), (5, 6), (6, 76), (76, 140), (140, 150)):
        alone = mixer(hidden[:, start:stop], static[:, start:stop], plain_context(BASE, stop - start))
        assert_close(together[:, start:stop], alone, rtol=1e-9, atol=1e-9)


def test_a_plugin_cannot_take_a_name_of_the_zoo():
    from deconattn.mixers import register
    from tests.mixers.models import ThirdParty

    class Impostor(ThirdParty):
        pass

    for name in ZOO[:1]:
        with pytest.raises(ValueError, match=f"variant {name!r} is already registered by"):
            register(name)(Impostor)


@pytest.mark.parametrize("changes", [{}, {"num_key_value_heads": 2}, {"attention_bias": False, "qk_norm": True}])
@pytest.mark.parametrize("variant", ZOO)
def test_parameters_are_counted_in_shapes_that_no_size_has(variant: str, changes: dict[str, int]):
    wide = {"hidden_size": 256, "intermediate_size": 1024, "num_attention_heads": 4, "head_dim": 64}
    config = replace(BASE, **wide, **changes)
    mixer = mixer_class(variant)(config)
    assert mixer.num_parameters(config) == sum(map(nn.Parameter.numel, mixer.parameters()))
