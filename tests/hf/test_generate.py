"""`generate` of the exported model: every way of decoding, with its own cache, gives what no cache gives."""

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Cache, DynamicCache, StaticCache

from deconattn.errors import UserError
from deconattn.hf.cache_deconattn import DeconAttnCache
from deconattn.hf.modeling_deconattn import DeconAttnForCausalLM
from tests.hf.models import MIXED, tokens
from tests.hf.test_modeling import build, padded

SUMS = ("approximate", "nonapproximate", "standard")
MODELS = {"mixed": MIXED, "sums": SUMS}
PROMPTS = [tokens(1, 12, 1), tokens(1, 5, 2), tokens(1, 1, 3)]


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> DeconAttnForCausalLM:
    return build(*MODELS[request.param])


def run(model: DeconAttnForCausalLM, ids: Tensor, mask: Tensor | None = None, **options: Any) -> Any:
    settings = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None} | options
    torch.manual_seed(11)
    return model.generate(ids, attention_mask=torch.ones_like(ids) if mask is None else mask, **settings)


WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "static": {"cache_implementation": "static"},
    "sampling": {"do_sample": True, "top_k": 20, "temperature": 1.3},
    "nucleus": {"do_sample": True, "top_p": 0.7, "num_return_sequences": 3},
    "beams": {"num_beams": 4, "num_return_sequences": 2},
    "beams_static": {"num_beams": 3, "cache_implementation": "static"},
    "beam_sampling": {"num_beams": 3, "do_sample": True},
    "penalty": {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2},
    "chunked_prefill": {"prefill_chunk_size": 5},
}


@pytest.mark.parametrize("way", WAYS)
def test_the_cache_changes_no_token(model: DeconAttnForCausalLM, way: str) -> None:
    """Prompts of unequal length, padded to the left."""
    ids, mask = padded(PROMPTS, "left")
    without = {
        name: value for name, value in WAYS[way].items() if name not in ("cache_implementation", "prefill_chunk_size")
    }
    expected = run(model, ids, mask, use_cache=False, **without)
    assert run(model, ids, mask, **WAYS[way]).tolist() == expected.tolist()


@torch.no_grad()
def test_every_prompt_of_a_batch_is_continued_as_alone(model: DeconAttnForCausalLM) -> None:
    generated = run(model, *padded(PROMPTS, "left"))
    for row, prompt in enumerate(PROMPTS):
        for _ in range(12):
            prompt = torch.cat([prompt, model(prompt).logits[:, -1:].argmax(dim=-1)], dim=1)
        assert generated[row, -prompt.shape[1] :].tolist() == prompt[0].tolist()


@pytest.mark.parametrize("variants", MODELS.values(), ids=MODELS)
@torch.no_grad()
def test_beam_search_finds_what_trying_everything_finds(variants: tuple[str, ...]) -> None:
    """With as many beams as there are beginnings no continuation is lost: the best are the best of all 216."""
    words, length = 6, 3
    model = build(*variants, vocab_size=words)
    prompt = torch.tensor([[1, 4, 2, 2, 5]])
    ends = torch.tensor(list(product(range(words), repeat=length)))
    logits = model(torch.cat([prompt.expand(len(ends), -1), ends], dim=1)).logits[:, 4:-1]
    scores = logits.log_softmax(dim=-1).gather(2, ends[..., None]).sum(dim=(1, 2))
    best = scores.topk(5)
    search = {"num_beams": words ** (length - 1), "num_return_sequences": 5, "length_penalty": 0.0}
    found = run(model, prompt, max_new_tokens=length, **search, return_dict_in_generate=True, output_scores=True)
    assert found.sequences[:, 5:].tolist() == ends[best.indices].tolist()
    torch.testing.assert_close(found.sequences_scores, best.values, atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_returned_cache_is_continued(model: DeconAttnForCausalLM) -> None:
    """Another turn, of which the model reads only what is new."""
    ids, mask = padded(PROMPTS, "left")
    first = run(model, ids, mask, return_dict_in_generate=True)
    cache = first.past_key_values
    assert isinstance(cache, DeconAttnCache) and isinstance(cache, Cache)
    assert cache.get_seq_length() == ids.shape[1] + 11  # the last token was never read
    more = torch.cat([first.sequences, tokens(3, 4, 9)], dim=1)
    both = torch.cat([mask, torch.ones(3, more.shape[1] - mask.shape[1], dtype=torch.long)], dim=1)
    got = run(model, more, both, past_key_values=cache)
    assert got.tolist() == run(model, more, both, use_cache=False).tolist()


@torch.no_grad()
def test_forward_returns_a_cache_where_one_is_asked_for(model: DeconAttnForCausalLM) -> None:
    ids = tokens(2, 9)
    assert model(ids).past_key_values is None
    cache = model(ids, use_cache=True).past_key_values
    step = model(tokens(2, 1, 5), past_key_values=cache)
    assert step.past_key_values is cache and cache.seen == 10
    whole = model(torch.cat([ids, tokens(2, 1, 5)], dim=1)).logits[:, -1:]
    torch.testing.assert_close(step.logits, whole, atol=1e-5, rtol=1e-5)


def test_hugging_face_asks_and_the_cache_answers() -> None:
    model = build("standard", "fixedseq")
    cache = DeconAttnCache(model.model, 50)
    assert (cache.get_max_length(), cache.get_seq_length(), cache.is_initialized) == (50, 0, False)
    with torch.no_grad():
        model(tokens(2, 9), past_key_values=cache)
    assert (cache.batch_size, cache.get_seq_length(), cache.is_initialized) == (2, 9, True)
    assert cache.get_mask_sizes(3, 0) == (12, 0)
    assert (
        cache.is_croppable and not cache.is_compileable and DeconAttnCache(model.model, 5, static=True).is_compileable
    )
    cache.batch_repeat_interleave(3)
    assert cache.batch_size == 6
    cache.batch_select_indices(torch.tensor([0, 5]))
    cache.crop(-4)
    assert (cache.batch_size, cache.get_seq_length()) == (2, 5)
    cache.reset()
    assert cache.get_seq_length() == 0
    assert not DeconAttnCache(build("nonapproximate").model).is_croppable
    with pytest.raises(TypeError, match="for a DeconAttn model"):
        cache.update(torch.zeros(1), torch.zeros(1), 0)


@torch.no_grad()
def test_assisted_decoding_takes_back_what_was_guessed_wrong() -> None:
    model, ids = build(*MIXED), tokens(1, 8).repeat(1, 3)
    expected = run(model, ids, use_cache=False)
    assert run(model, ids, prompt_lookup_num_tokens=3).tolist() == expected.tolist()
    assistant = build("standard")
    assert run(model, ids, assistant_model=assistant).tolist() == expected.tolist()
    with pytest.raises(ValueError, match="keeps sums|can be cropped"):
        run(build("nonapproximate"), ids, prompt_lookup_num_tokens=3)


def test_beyond_the_fixed_stream_is_refused_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """80 tokens; the last generated one is never read, so it may lie behind them."""
    model = build("standard", "rndemb")
    assert run(model, tokens(1, 70), max_new_tokens=11).shape == (1, 81)
    monkeypatch.setattr(model, "forward", lambda *_, **__: pytest.fail("computed"))
    for options in ({}, {"use_cache": False}, {"cache_implementation": "static"}):
        with pytest.raises(UserError, match="81 tokens is beyond the fixed stream of 80"):
            run(model, tokens(1, 70), **options)


def test_without_a_fixed_stream_any_length_goes() -> None:
    model = build("standard", "approximate")  # max_position_embeddings 80
    assert run(model, tokens(1, 70), max_new_tokens=20).shape == (1, 90)


def test_other_caches_are_refused() -> None:
    model = build("standard")
    with pytest.raises(ValueError, match="'quantized': this model has dynamic"):
        run(model, tokens(1, 4), cache_implementation="quantized")
    for other in (DynamicCache(), StaticCache(config=model.config, max_cache_len=9), object()):
        with pytest.raises(ValueError, match=f"the cache is a {type(other).__name__}: give a DeconAttnCache"):
            model(tokens(1, 2), past_key_values=other)
    with pytest.raises(ValueError, match="one document a row"):
        model(tokens(1, 4), position_ids=torch.tensor([[0, 1, 0, 1]]), use_cache=True)
    with pytest.raises(ValueError, match=r"attention_mask has shape \(1, 3\)"):
        model(tokens(1, 4), attention_mask=torch.ones(1, 3), use_cache=True)


@pytest.mark.slow
@pytest.mark.parametrize("variants", MODELS.values(), ids=MODELS)
@torch.no_grad()
def test_a_static_step_compiles_once_and_whole(variants: tuple[str, ...]) -> None:
    """One graph without breaks serves every step, and gives what eager execution gives."""
    torch._dynamo.reset()
    model, ids = build(*variants), tokens(2, 30)
    compiled = torch.compile(model.forward, fullgraph=True)
    caches = [DeconAttnCache(model.model, 60, static=True) for _ in range(2)]
    for cache in caches:
        model(ids[:, :10], past_key_values=cache)
    for position in range(10, 30):
        step = ids[:, position : position + 1]
        expected = model(step, past_key_values=caches[0]).logits
        torch.testing.assert_close(compiled(step, past_key_values=caches[1]).logits, expected, atol=2e-5, rtol=1e-5)
        if position == 11:
            torch._dynamo.config.error_on_recompile = True
    torch._dynamo.config.error_on_recompile = False
