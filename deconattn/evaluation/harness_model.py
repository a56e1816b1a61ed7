"""The harness's wrapper of Hugging Face models around a model of ours; imports the harness."""

import copy
import math
import sys
from collections.abc import Callable
from typing import Any

from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from deconattn.evaluation.bars import Bar
from deconattn.evaluation.harness import TOKENS_A_BATCH, Stopped

Request = tuple[Any, list[int], list[int]]
"""(its text, the context's tokens, the continuation's tokens)."""


class HarnessModel(HFLM):
    """`lm_eval.models.huggingface.HFLM`, with one progress bar for all windows of a rolling likelihood.

    An answer that is longer than the context, which the harness stops at, is scored in parts of half a context, each
    after as many of the tokens before it as fit.

    Args:
        batch_size: sequences a batch; None: the largest that the GPU holds, or `TOKENS_A_BATCH` on a CPU.
        max_length: tokens of context; None: the configuration's.
        stop: asked between batches whether to leave off.
        perturb: changes the contexts that answers follow, shots and prompt among them; what is scored stays, and so
            does a text that is scored as a whole.
        bars: show on a terminal how far it is.

    Raises:
        Stopped: when it runs, `stop` said so.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        batch_size: int | None = None,
        max_length: int | None = None,
        stop: Callable[[], bool] | None = None,
        perturb: Callable[[str], str] | None = None,
        bars: bool = True,
    ) -> None:
        super().__init__(pretrained=model, tokenizer=tokenizer, max_length=max_length, batch_size=batch_size or 1)
        if batch_size is None:
            on_gpu = self.device.type == "cuda"
            self.batch_size_per_gpu = "auto" if on_gpu else max(1, TOKENS_A_BATCH // self.max_length)
        self._windows: Bar | None = None
        self._told = False
        self._stop = stop
        self._perturb = perturb
        self._bars = bars

    def _model_call(self, *arguments: Any, **more: Any) -> Any:
        self._ask()
        return super()._model_call(*arguments, **more)

    def _model_generate(self, *arguments: Any, **more: Any) -> Any:
        self._ask()
        return super()._model_generate(*arguments, **more)

    def _ask(self) -> None:
        if self._stop is not None and self._stop():
            raise Stopped

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        return super().loglikelihood(self._perturbed(requests), disable_tqdm)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        return super().generate_until(self._perturbed(requests), disable_tqdm)

    def _perturbed(self, requests: list[Any]) -> list[Any]:
        if self._perturb is None:
            return requests
        changed = []
        for request in requests:
            context, *rest = request.args
            changed.append(copy.copy(request))
            changed[-1].arguments = (self._perturb(context), *rest)
        return changed

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        hidden = disable_tqdm or not self._bars
        with Bar(desc="Running rolling windows", unit="windows", disable=hidden) as self._windows:
            return super().loglikelihood_rolling(requests, disable_tqdm=True)

    def _loglikelihood_tokens(
        self, requests: list[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        rolling = override_bs is not None and self._windows is not None
        parts = [self._parts(request) for request in requests]
        flat = [part for some in parts for part in some]
        scored = iter(super()._loglikelihood_tokens(flat, disable_tqdm or rolling, override_bs))
        if rolling and self._windows is not None:
            self._windows.update(len(requests))
        found = [[next(scored) for _ in some] for some in parts]
        return [(sum(nats for nats, _ in some), all(greedy for _, greedy in some)) for some in found]

    def _parts(self, request: Request) -> list[Request]:
        """Cut an answer that is longer than the context."""
        _, context, answer = request
        if len(answer) <= self.max_length:
            return [request]
        size = max(1, self.max_length // 2)
        if not self._told:
            print(
                f"note: an answer of {len(answer)} tokens is more than the model's context of {self.max_length}: such "
                f"answers are scored in parts of {size} tokens, each after those before it",
                file=sys.stderr,
            )
            self._told = True
        starts = range(0, len(answer), size)
        return [(None, context + answer[:start], answer[start : start + size]) for start in starts]


class UniformModel(HarnessModel):
    """Gives every token of the vocabulary the same probability; asks the model for no more than its size."""

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        return super().loglikelihood_rolling(requests, disable_tqdm=True)  # it takes no time

    def _loglikelihood_tokens(
        self, requests: list[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        nats_a_token = math.log(self.config.vocab_size)
        return [(-nats_a_token * len(continuation), False) for *_, continuation in requests]
