"""Continuing a prompt: its tokens, how many more fit, and the loop that makes them."""

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from deconattn.checkpoint.stored_model import StoredModel
from deconattn.errors import UserError
from deconattn.generation.sampling import Sampling


def encode(stored: StoredModel, prompt: str) -> Tensor:
    """The prompt's ids, int64 [1, L].

    Raises:
        UserError: there are none, or more than the model can take.
    """
    ids = stored.tokenizer(prompt, verbose=False).input_ids
    if not ids:
        raise UserError(f"the prompt {prompt!r} has no token in this model's tokenizer: give another")
    if stored.longest is not None and len(ids) > stored.longest:
        raise UserError(
            f"the prompt has {len(ids)} tokens, more than the model's fixed stream of {stored.longest}: "
            "shorten it, or train with a longer --seq-len"
        )
    return torch.tensor([ids])


def room(stored: StoredModel, prompt: Tensor) -> int | None:
    """Tokens by which a prompt [1, L] can be continued; None is any number."""
    # The last token is never read, so nothing has to hold it.
    return None if stored.longest is None else stored.longest - prompt.shape[1] + 1


def continue_text(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Tensor,
    sampling: Sampling,
    streamer: BaseStreamer | None = None,
) -> Tensor:
    """Replaces the model's generation configuration and, where `sampling` has a seed, seeds torch's own generators.

    Args:
        prompt: int64 [1, L].
        streamer: is given the prompt, and each token as it is made.

    Returns:
        Prompt and continuation, int64 [1, L + N], the end of text included where the model made it.
    """
    own = model.generation_config
    eos = tokenizer.eos_token_id if own.eos_token_id is None else own.eos_token_id
    choice = {"temperature": float(sampling.temperature), "top_p": sampling.top_p, "top_k": 0}
    # Replaced, because generate takes what it is not told from the model's: a repetition penalty, for example.
    model.generation_config = GenerationConfig(
        max_new_tokens=sampling.max_new_tokens,
        do_sample=sampling.temperature > 0,
        eos_token_id=eos,
        pad_token_id=eos[0] if isinstance(eos, list) else eos,  # one row has no padding, but a warning asks for it
        **(choice if sampling.temperature else {}),
    )
    if sampling.seed is not None:
        torch.manual_seed(sampling.seed)
    prompt = prompt.to(model.device)
    return model.generate(prompt, attention_mask=torch.ones_like(prompt), streamer=streamer)
