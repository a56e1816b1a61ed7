"""Tokens become text piece by piece, and the pieces are the text."""

import pytest
import torch
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from deconattn.generation.continuation import TextStream
from tests.hf.models import VOCAB

WIDE = "Žluť 東京 🤗👩\u200d👧 ё"


def pieces_of(tokenizer: PreTrainedTokenizerBase, prompt: list[int], ids: list[int]) -> list[str]:
    pieces: list[str] = []
    stream = TextStream(tokenizer, pieces.append)
    stream.put(torch.tensor([prompt]))
    for token in ids:
        stream.put(torch.tensor([token]))
    stream.end()
    assert stream.tokens == len(ids)
    return pieces


def test_no_character_is_broken(hf_tokenizer: PreTrainedTokenizerBase) -> None:
    ids = hf_tokenizer(WIDE).input_ids
    assert len(ids) > 2 * len(WIDE)
    pieces = pieces_of(hf_tokenizer, hf_tokenizer("東").input_ids, ids)
    assert "".join(pieces) == WIDE
    assert "\ufffd" not in "".join(pieces)
    assert len(pieces) == len(WIDE)  # each as soon as it is whole


@pytest.mark.parametrize("seed", range(5))
def test_bytes_that_are_no_text_decode_as_in_one_go(hf_tokenizer: PreTrainedTokenizerBase, seed: int) -> None:
    new = torch.randint(1, VOCAB, (120,), generator=torch.Generator().manual_seed(seed)).tolist()
    prompt = hf_tokenizer("To be").input_ids
    whole = hf_tokenizer.decode(prompt + new)
    assert "\ufffd" in whole
    assert "".join(pieces_of(hf_tokenizer, prompt, new)) == whole.removeprefix("To be")


def test_what_stays_incomplete_is_shown_at_the_end(hf_tokenizer: PreTrainedTokenizerBase) -> None:
    cut = hf_tokenizer("a🤗").input_ids[:-1]
    assert pieces_of(hf_tokenizer, [5], cut) == ["a", "\ufffd"]


def test_special_tokens_are_no_text(hf_tokenizer: PreTrainedTokenizerBase) -> None:
    ids = hf_tokenizer("ab").input_ids
    assert hf_tokenizer.eos_token_id == 0
    assert "".join(pieces_of(hf_tokenizer, [5], [*ids, 0])) == "ab"


def test_spaces_survive_a_tokenizer_that_drops_the_first() -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    words = ["<unk>", "▁", "▁to", "▁be", "\n", "be"]
    core = Tokenizer(models.Unigram([(word, -1.0) for word in words], unk_id=0))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core)
    assert tokenizer.decode([2, 3]) == "to be"
    assert "".join(pieces_of(tokenizer, [2], [3, 4, 1, 3, 2, 4, 3])) == " be\n  be to\n be"
