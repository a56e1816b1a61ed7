"""The stack: fixed rows, activation checkpointing, names, tied embeddings, the loss."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from deconattn.errors import UserError
from deconattn.mixers import variant_names
from deconattn.model.causal_lm import CausalLM

TOKENS = torch.randint(61, (3, 70), generator=torch.Generator().manual_seed(1))
LABELS = TOKENS.roll(-1, dims=1)
DOCUMENTS = (torch.arange(70) // torch.tensor([[20], [35], [70]])).contiguous()
POSITIONS = torch.arange(70) % torch.tensor([[20], [35], [70]])
PATTERNS = (
    *((variant, variant) for variant in variant_names()),
    ("rndemb", "standard", "staticemb", "fixedseq", "mlp", "approximate", "staticemb"),
)


def loss_gradients(model: CausalLM, *documents: Tensor) -> dict[str, Tensor]:
    loss = model(TOKENS, LABELS, *documents).total
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    return {"loss": loss.detach(), **dict(zip(names, found, strict=True))}


def assert_equal_gradients(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float) -> None:
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert_close(ours[name], theirs[name], rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


def widths(model: CausalLM) -> list[int]:
    """Rows that each layer sees."""
    seen: list[int] = []
    hooks = [layer.register_forward_pre_hook(lambda _, args: seen.append(len(args[0]))) for layer in model.model.layers]
    model.model(TOKENS)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("variant", ["rndemb", "fixedseq"])
def test_beyond_the_fixed_stream(tiny_model, variant: str):
    model = tiny_model("standard", variant, max_position_embeddings=69)
    with pytest.raises(UserError, match="a sequence of 70 tokens is beyond the fixed stream of 69"):
        model.model(TOKENS)
    assert model.model(TOKENS[:, :69]).shape == (3, 69, 32)


def test_other_variants_go_beyond_their_training_length(tiny_model):
    assert tiny_model("standard", "mlp", max_position_embeddings=16).model(TOKENS).shape == (3, 70, 32)


@pytest.mark.parametrize(
    ("variants", "seen"),
    [
        (("standard", "standard"), [3, 3]),
        (("rndemb", "standard", "mlp"), [4, 3, 3]),
        (("standard", "fixedseq"), [4, 4]),
        (("rndemb", "standard", "fixedseq", "staticemb", "standard"), [5, 5, 5, 3, 3]),
    ],
)
@pytest.mark.parametrize("documents", [(), (POSITIONS, DOCUMENTS)], ids=["plain", "documents"])
def test_rows_leave_after_the_last_layer_that_reads_them(tiny_model, variants, seen, documents):
    model = tiny_model(*variants)
    assert widths(model) == seen
    expected = loss_gradients(model, *documents)
    model.model.last_fixed_layer = len(variants)  # they stay to the end, and are cut off there
    model.model.norm.register_forward_pre_hook(lambda _, args: (args[0][: len(TOKENS)],))
    assert widths(model) == [seen[0]] * len(variants)
    assert_equal_gradients(loss_gradients(model, *documents), expected, 1e-11)


def test_whole_tensors_are_not_sliced(tiny_model) -> None:
    """The backward pass of a slice makes zeros and copies the gradient into them, though nothing was cut off."""
    seen, waiting = set(), [tiny_model("standard", "mlp", "standard").model(TOKENS).grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [following for following, _ in node.next_functions]
    assert len(seen) > 20
    sliced = [node for node in seen if node.name() == "SliceBackward0" and node._saved_dim == 0]
    assert not sliced


@pytest.mark.parametrize("documents", [(), (POSITIONS, DOCUMENTS)], ids=["plain", "documents"])
def test_the_last_layer_that_reads_a_stream_computes_nothing_more_of_it(tiny_model, documents):
    """Its keys and queries come from the stream's row; its values and its feed-forward do not."""
    model = tiny_model("mlp", "fixedseq", "standard", "rndemb", "standard")
    seen: dict[str, int] = {}
    for name, module in model.model.layers[3].named_modules():
        module.register_forward_pre_hook(lambda _, args, name=name: seen.__setitem__(name, len(args[0])))
    model.model(TOKENS, *documents)
    assert (seen["self_attn"], seen["self_attn.q_proj"], seen["self_attn.k_proj"]) == (5, 1, 1)
    assert {seen[f"self_attn.{name}"] for name in ("v_proj", "o_proj")} == {3}
    assert {seen[name] for name in ("post_attention_layernorm", "mlp", "mlp.down_proj")} == {3}


@pytest.mark.parametrize("variants", PATTERNS, ids=",".join)
@pytest.mark.parametrize("documents", [(), (POSITIONS, DOCUMENTS)], ids=["plain", "documents"])
def test_activation_checkpointing_changes_nothing(tiny_model, variants: tuple[str, ...], documents):
    model = tiny_model(*variants)
    expected = loss_gradients(model, *documents)
    calls: list[int] = []
    for layer in model.model.layers:
        layer.mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    model.model.activation_checkpointing = True
    assert_equal_gradients(loss_gradients(model, *documents), expected, 1e-13)
    assert len(calls) >= 2 * len(variants) - 1  # each layer ran again
    calls.clear()
    with torch.no_grad():
        model.model(TOKENS)
    assert len(calls) == len(variants)


@pytest.mark.parametrize("variants", PATTERNS, ids=",".join)
def test_loss_is_the_cross_entropy_of_the_logits(tiny_model, variants: tuple[str, ...]):
    model = tiny_model(*variants)
    labels = LABELS.clone()
    labels[:, -1] = -100
    with torch.no_grad():
        loss, logits = model(TOKENS, labels), model.logits(TOKENS)
    assert logits.shape == (3, 70, 61)
    assert loss.labels == 3 * 69
    assert_close(loss.total, cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum"))


def test_initial_loss_is_near_chance(tiny_model):
    loss = tiny_model("standard", "rndemb", "nonapproximate", noise=0)(TOKENS, LABELS)
    assert abs(loss.total.item() / loss.labels.item() - torch.tensor(61.0).log().item()) < 0.05


def test_tied_embeddings_are_one_tensor_with_one_gradient(tiny_model):
    untied, tied = tiny_model("standard", "fixedseq"), tiny_model("standard", "fixedseq", tie_word_embeddings=True)
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    assert "lm_head.weight" not in dict(tied.named_parameters())
    assert untied.lm_head.weight is not untied.model.embed_tokens.weight
    assert len(list(untied.parameters())) == len(list(tied.parameters())) + 1

    state = tied.state_dict()
    untied.load_state_dict({**state, "lm_head.weight": state["model.embed_tokens.weight"]})
    ours, theirs = loss_gradients(tied), loss_gradients(untied)
    theirs["model.embed_tokens.weight"] = theirs["model.embed_tokens.weight"] + theirs.pop("lm_head.weight")
    assert_equal_gradients(ours, theirs, 1e-11)


def test_names_are_hugging_faces(tiny_model):
    names = set(tiny_model("standard", qk_norm=True).state_dict())
    layer = "model.layers.0."
    attention = {f"{layer}self_attn.{p}_proj.{kind}" for p in "qkv" for kind in ("weight", "bias")}
    attention |= {f"{layer}self_attn.{name}.weight" for name in ("o_proj", "q_norm", "k_norm")}
    block = {f"{layer}mlp.{name}_proj.weight" for name in ("gate", "up", "down")}
    block |= {f"{layer}input_layernorm.weight", f"{layer}post_attention_layernorm.weight"}
    assert names == attention | block | {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}


def test_buffers_are_there_where_they_are_read(tiny_model):
    def buffers(*variants: str) -> set[str]:
        return {name for name, _ in tiny_model(*variants).named_buffers()}

    assert buffers("standard", "staticemb", "approximate") == set()
    assert buffers("standard", "rndemb") == {"model.fixed_embeddings"}
    assert buffers("fixedseq", "standard") == {"model.fixed_ids"}
    assert buffers("fixedseq", "rndemb") == {"model.fixed_embeddings", "model.fixed_ids"}
    assert tiny_model("rndemb").model.fixed_embeddings.requires_grad is False


@pytest.mark.parametrize("variants", PATTERNS, ids=",".join)
def test_bfloat16_training_step(tiny_model, variants: tuple[str, ...]):
    """A whole model in bf16 gives finite gradients everywhere, and its float64 loss to about bf16's epsilon."""
    model = tiny_model(*variants, noise=0.02).bfloat16()
    exact = CausalLM(model.config).double()
    exact.load_state_dict(model.state_dict())
    loss = model(TOKENS, LABELS)
    loss.total.backward()
    assert loss.total.dtype == torch.float32
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert abs(loss.total.item() / exact(TOKENS, LABELS).total.item() - 1) < torch.finfo(torch.bfloat16).eps
