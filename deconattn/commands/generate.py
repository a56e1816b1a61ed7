"""Continue a text with a trained model: generate MODEL --prompt TEXT."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console

from deconattn.cli import parse
from deconattn.generation.sampling import Sampling
from deconattn.generation.text_io import TextOutput, read_prompt
from deconattn.program import command
from deconattn.shown import data_stream

INTERRUPTED = 130
# A constructor, or `--prompt None` would be no prompt.
_TEXT = tyro.conf.arg(constructor=str, metavar="TEXT", help_behavior_hint="(--prompt=TEXT where it begins with a dash)")


@dataclass(frozen=True)
class Arguments:
    """Continue a text with a trained model.

    The prompt is --prompt, or --file, or what is piped in. Prompt and continuation go to standard output as they are
    made, and nothing else does.
    """

    model: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A Hugging Face folder, a run folder (its newest good checkpoint) or one of its step-N folders."""
    prompt: Annotated[str | None, _TEXT] = None
    """The text to continue."""
    file: Path | None = None
    """A file with the text to continue, less the line end at its end."""
    sampling: Sampling = field(default_factory=Sampling)
    dtype: Literal["fp32", "bf16"] | None = None
    """Precision to compute in; by default what the export stores or the run computed in."""
    plugin: tuple[Path, ...] = ()
    """Python files that register the variants of third parties that the model has."""
    trust_plugins: bool = False
    """Run the plugins that a run names, which are somebody's code, without being given them."""


def main(words: Sequence[str]) -> int | None:
    """Read the flags and generate; 130, as shells have it, after Ctrl-C."""
    return generate(parse(Arguments, words, program=command("generate")))


def generate(arguments: Arguments) -> int | None:
    """Check everything, load the model, and write the continuation as it is made."""
    arguments.sampling.check()
    try:
        _generate(arguments, read_prompt(arguments.prompt, arguments.file, sys.stdin))
    except KeyboardInterrupt:
        return INTERRUPTED
    return None


def _generate(arguments: Arguments, prompt: str) -> None:
    from deconattn.checkpoint.stored_model import open_model
    from deconattn.generation.continuation import TextStream, continue_text, encode, room

    stored = open_model(arguments.model, arguments.plugin, arguments.trust_plugins)
    ids = encode(stored, prompt)
    sampling, limit = arguments.sampling.seeded(), room(stored, ids)
    if limit is not None and sampling.max_new_tokens > limit:
        print(
            f"note: --max-new-tokens {sampling.max_new_tokens} is cut to {limit}, where the fixed stream of "
            f"{stored.longest} tokens ends",
            file=sys.stderr,
        )
        sampling = replace(sampling, max_new_tokens=limit)
    model = stored.load(arguments.dtype)
    output = TextOutput(data_stream(sys.stdout))
    stream = TextStream(stored.tokenizer, output.write)
    output.prompt(prompt)
    start = time.perf_counter()
    try:
        continue_text(model, stored.tokenizer, ids, sampling, stream)
    finally:
        output.write("\n")
    if sys.stderr.isatty():
        rate = stream.tokens / (time.perf_counter() - start)
        line = f"{stream.tokens} tokens, {rate:.1f} tokens/s on {model.device.type}, --seed {sampling.seed}"
        Console(stderr=True).out(line, style="dim", highlight=False)
