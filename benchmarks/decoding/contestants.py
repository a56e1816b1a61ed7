"""Who decodes in `decode.py`: our variants and transformers' Qwen2 of the same dimensions, and what their caches hold.

Caches are filled by the models themselves. A prompt passes as one row, and the rows of every batch are copies of it; a
static cache, which has all its rows from the start, gets the prompt in each of them.
"""

import copy
import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from benchmarks.kernels.clock import release
from benchmarks.training.contestants import qwen2_config
from benchmarks.training.cpu_contestant import PEER
from deconattn.config.command_line import parse_training_flags
from deconattn.config.flags import model_config
from deconattn.cost import generation as cost
from deconattn.hf.configuration_deconattn import DeconAttnConfig
from deconattn.layers.config import ModelConfig
from deconattn.model.flops import count_parameters

Precision = Literal["fp32", "bf16"]
Call = Callable[[], Any]
DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
SEED = 1234


@dataclass(frozen=True)
class Contestant:
    """A variant of ours in a pattern, or the peer."""

    variant: str = ""
    """Empty: transformers' Qwen2."""
    pattern: str = "uniform"

    @property
    def name(self) -> str:
        """As tables and figures show it."""
        if not self.variant:
            return PEER
        return self.variant if self.pattern in ("uniform", "0:1") else f"{self.variant} {self.pattern}"


QWEN2 = Contestant()


@dataclass(frozen=True)
class Setting:
    """What the contestants of a race have in common."""

    size: str
    layers: int
    """Depth; 0 is the size's own."""
    vocab_size: int
    precision: Precision
    device: str
    longest: int
    """Tokens that a sequence may have at most; also the length of the fixed streams."""
    static: bool = False
    """Caches of constant shape, and each step compiled, as `generate(cache_implementation="static")` does on a GPU."""

    def config(self, contestant: Contestant) -> ModelConfig:
        """The peer has the dimensions of `standard`.

        Raises:
            UserError: no such size, variant or pattern.
        """
        arguments = ["--size", self.size, "--variant", contestant.variant or "standard"]
        arguments += ["--pattern", contestant.pattern, "--vocab-size", str(self.vocab_size)]
        arguments += ["--num-hidden-layers", str(self.layers)] if self.layers else []
        return model_config(parse_training_flags(arguments).model, self.vocab_size, self.longest)

    def nbytes(self, contestant: Contestant, rows: int) -> int:
        """Of weights and of a cache of so many of the longest sequences, about."""
        config, width = self.config(contestant), DTYPES[self.precision].itemsize
        held = cost.cache_bytes(config, rows, self.longest, width)
        held += cost.fixed_bytes(config, self.longest, width)
        return count_parameters(config).total * width + held

    def tokens(self, rows: int, length: int) -> Tensor:
        """Random ids [rows, length], the same in every row and for every contestant."""
        generator = torch.Generator().manual_seed(SEED)
        drawn = torch.randint(self.vocab_size, (1, length), generator=generator)
        return drawn.expand(rows, -1).contiguous().to(self.device)


class Player:
    """A contestant's model in memory, and the one row whose copies it decodes from.

    Attributes:
        model: takes prompts.
        forward: takes a step.
    """

    def __init__(self, contestant: Contestant, setting: Setting) -> None:
        from transformers import AutoModelForCausalLM

        self.contestant, self.setting = contestant, setting
        ours = setting.config(contestant)
        config = DeconAttnConfig.of(ours) if contestant.variant else qwen2_config(ours)
        config.use_cache = True  # generate asks the configuration
        torch.manual_seed(SEED)
        with torch.device(setting.device):
            self.model = AutoModelForCausalLM.from_config(config, dtype=DTYPES[setting.precision]).eval()
        self.forward: Callable[..., Any] = self.model
        if setting.static:
            self.forward = torch.compile(self.model.__call__, mode="reduce-overhead", dynamic=False)
        self._row: Any = None

    def cache(self, rows: int, length: int, room: int) -> Any:
        """A new cache that holds so many tokens in each row and has room for `room` more."""
        if self.setting.static:
            return self._after_prompt(rows, length, self._static_cache(length + room))
        if self._row is None or self._row.get_seq_length() != length:
            self._row = None  # before there is another
            self._row = self._after_prompt(1, length, None)
        return copied(self._row, rows)

    def _after_prompt(self, rows: int, length: int, cache: Any) -> Any:
        """The cache, the model's own kind where it is None, after so many tokens."""
        tokens = self.setting.tokens(rows, length)
        return self.model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1).past_key_values

    def _static_cache(self, limit: int) -> Any:
        if self.contestant.variant:
            from deconattn.hf.cache_deconattn import DeconAttnCache

            return DeconAttnCache(self.model.model, limit, static=True)
        from transformers import StaticCache

        return StaticCache(config=self.model.config, max_cache_len=limit)


class Steps:
    """Decoding: calls of a model on one new token a row, from a cache of its own.

    Attributes:
        nbytes: of the cache before the first step.
        fixed_nbytes: of what it shares with all caches of the model.
    """

    def __init__(self, player: Player, rows: int, length: int, room: int, turn: int) -> None:
        self.cache = player.cache(rows, length, room)
        self.nbytes, self.fixed_nbytes = cache_bytes(self.cache)
        self._token = player.setting.tokens(rows, 1)
        self._forward, self._turn = player.forward, turn

    def __call__(self) -> Tensor:
        """A turn: some steps; the last one's logits, [rows, 1, vocab_size]."""
        for _ in range(self._turn):
            logits: Tensor = self._forward(self._token, past_key_values=self.cache, use_cache=True).logits
        return logits


def generation(player: Player, prompt: int, new_tokens: int) -> Call:
    """A greedy `generate` of one row from its prompt on."""
    ids = player.setting.tokens(1, prompt)
    implementation = {"cache_implementation": "static"} if player.setting.static else {}
    return lambda: player.model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=new_tokens,
        do_sample=False,
        pad_token_id=0,
        **implementation,
    )


def copied(cache: Any, rows: int) -> Any:
    """A cache whose rows are copies of the one row that `cache` holds; what a model's caches share, it shares."""
    shared = [tensor for layer in cache.layers for tensor in getattr(layer, "fixed", ())]
    copy_of_it = copy.deepcopy(cache, {id(tensor): tensor for tensor in shared})
    copy_of_it.batch_repeat_interleave(rows)
    return copy_of_it


def cache_bytes(cache: Any) -> tuple[int, int]:
    """Bytes held for the batch, and once for all rows."""
    if hasattr(cache, "fixed_nbytes"):
        return cache.nbytes, cache.fixed_nbytes
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers), 0


def groups(contestants: Sequence[Contestant], setting: Setting, rows: int, available: int) -> list[list[Contestant]]:
    """The contestants in groups whose weights and caches of so many rows fit into memory, the peer in each."""
    budget = available - setting.nbytes(QWEN2, rows)
    found: list[list[Contestant]] = []
    left = 0
    for contestant in contestants:
        needed = setting.nbytes(contestant, rows)
        if not found or needed > left:
            found.append([QWEN2])
            left = budget
        found[-1].append(contestant)
        left -= needed
    return found


def freed() -> None:
    """Gives back what was dropped."""
    gc.collect()
    release()
