"""What a run's model makes of a prompt."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from deconattn.generation.sampling import Sampling
from deconattn.runs.run import Run


def continuation(run: Run, prompt: str, sampling: Sampling, plugins: Sequence[Path], trust_plugins: bool) -> str:
    """Continue a prompt with the newest good checkpoint of a run; returns the continuation alone.

    Raises:
        UserError: there is no checkpoint, or the model cannot take the prompt.
    """
    from deconattn.checkpoint.stored_model import open_model
    from deconattn.generation.continuation import TextStream, continue_text, encode, room

    stored = open_model(run.folder, plugins, trust_plugins)
    ids = encode(stored, prompt)
    limit = room(stored, ids)
    if limit is not None:
        sampling = replace(sampling, max_new_tokens=min(sampling.max_new_tokens, limit))
    pieces: list[str] = []
    continue_text(stored.load(), stored.tokenizer, ids, sampling, TextStream(stored.tokenizer, pieces.append))
    return "".join(pieces)
