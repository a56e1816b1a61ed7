"""Sampling parameters of a continuation."""

import math
import secrets
from dataclasses import dataclass, replace

from deconattn.errors import UserError


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen."""

    max_new_tokens: int = 200
    """Stop after so many tokens, or before where the model ends the text."""
    temperature: float = 0.8
    """Divides the logits; 0 takes the likeliest token every time."""
    top_p: float = 0.95
    """Choose among the likeliest tokens that have this probability together; 1 is all tokens."""
    seed: int | None = None
    """Seed of the random choices; without it every text is another."""

    def check(self) -> None:
        """Raises UserError for a value that cannot be."""
        if self.max_new_tokens < 1:
            raise UserError(f"--max-new-tokens {self.max_new_tokens}: give 1 or more")
        if self.temperature != 0 and not 1e-6 <= self.temperature < math.inf:  # less and a logit could overflow
            raise UserError(f"--temperature {self.temperature:g}: give 0, which is greedy, or a number from 1e-6 on")
        if not 0 < self.top_p <= 1:
            raise UserError(f"--top-p {self.top_p:g}: give a probability above 0, at most 1")
        if self.seed is not None and not 0 <= self.seed < 2**64:
            raise UserError(f"--seed {self.seed}: give a whole number from 0 to 2**64 - 1")

    def seeded(self) -> "Sampling":
        """Return the flags with a seed, drawn at random where none was given."""
        return self if self.seed is not None else replace(self, seed=secrets.randbelow(10**9))
