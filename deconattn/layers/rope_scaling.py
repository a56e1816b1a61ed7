"""Scaling of rotary wavelengths for sequences longer than a model was first trained on, with transformers' numbers.

Linear: positions divided by the factor (Chen et al. 2023, arXiv:2306.15595). YaRN: long wavelengths divided so, short
ones left alone, and scores sharpened (Peng et al. 2023, arXiv:2309.00071). llama3: the same with another ramp and no
sharpening (Llama 3.1). Static NTK is another base of all wavelengths, which :func:`ntk_theta` gives.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from deconattn.errors import UserError

RopeType = Literal["linear", "yarn", "llama3"]
NONE, NTK = "none", "ntk"
_NAMES = {
    "original": "original_max_position_embeddings",
    "attention": "attention_factor",
    "beta_fast": "beta_fast",
    "beta_slow": "beta_slow",
    "low": "low_freq_factor",
    "high": "high_freq_factor",
}
"""Settings in a flag and their names in Hugging Face's `rope_parameters`."""
_SETTINGS = {
    "linear": (),
    "yarn": ("original", "attention", "beta_fast", "beta_slow"),
    "llama3": ("original", "low", "high"),
}


@dataclass(frozen=True)
class RopeScaling:
    """Scaling of a model's rotary wavelengths; checked at construction.

    Raises:
        UserError: a number that cannot be.
    """

    rope_type: RopeType
    factor: float
    """How many times as long sequences become."""
    original_max_position_embeddings: int = 0
    """Longest sequence before the scaling; 0 in linear scaling, which does not read it."""
    attention_factor: float = 1.0
    """What cosines and sines are multiplied with."""
    beta_fast: float = 32.0
    """YaRN: wavelengths that turn so often or more within the original length are left alone."""
    beta_slow: float = 1.0
    """YaRN: wavelengths that turn so often or less are divided by the factor."""
    low_freq_factor: float = 1.0
    """llama3: as `beta_slow`."""
    high_freq_factor: float = 4.0
    """llama3: as `beta_fast`."""

    def __post_init__(self) -> None:
        numbers = {name: getattr(self, name) for name in ("factor", *_NAMES.values())}
        for name, value in numbers.items():
            least = 1 if name == "factor" else 0
            if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < math.inf:
                raise UserError(f"rope scaling {self.rope_type}: {name} is {value!r}: it must be a number >= {least}")
        if self.rope_type != "linear" and self.original_max_position_embeddings < 1:
            raise UserError(f"rope scaling {self.rope_type}: original_max_position_embeddings is missing: give it")
        if not self.attention_factor:
            raise UserError(f"rope scaling {self.rope_type}: attention_factor is 0: it must be more")
        ramp = {"yarn": ("beta_slow", "beta_fast"), "llama3": ("low_freq_factor", "high_freq_factor")}
        if self.rope_type in ramp:
            low, high = ramp[self.rope_type]
            if not 0 < numbers[low] < numbers[high]:
                raise UserError(
                    f"rope scaling {self.rope_type}: {low} {numbers[low]:g} and {high} {numbers[high]:g}: "
                    "the first must be more than 0 and less than the second"
                )

    @classmethod
    def of(cls, parameters: Mapping[str, Any]) -> "RopeScaling | None":
        """Return that of Hugging Face's `rope_parameters`, as transformers completes them; None: no scaling.

        Raises:
            UserError: a type or a setting that is not ours, by name.
        """
        rope_type = parameters.get("rope_type", "default")
        if rope_type == "default":
            return None
        if rope_type not in _SETTINGS:
            hint = ", whose base changes with the length: give --rope-scaling ntk" if rope_type == "dynamic" else ""
            raise UserError(f"our model has no rope scaling of type {rope_type!r} (rope_parameters){hint}")
        if not parameters.get("truncate", True):
            raise UserError("our model has no rope scaling without rounded bounds (rope_parameters: truncate)")
        factor = parameters.get("factor")
        if isinstance(factor, bool) or not isinstance(factor, int | float):
            raise UserError(f"rope scaling {rope_type}: factor is {factor!r}: it must be a number >= 1")
        # What is left out, or null, has the default.
        given = {_NAMES[name]: parameters.get(_NAMES[name]) for name in _SETTINGS[rope_type]}
        if rope_type == "yarn" and given["attention_factor"] is None:
            given["attention_factor"] = yarn_attention_factor(
                factor, parameters.get("mscale"), parameters.get("mscale_all_dim")
            )
        return cls(rope_type, factor, **{name: value for name, value in given.items() if value is not None})

    def parameters(self, rope_theta: float) -> dict[str, Any]:
        """Return Hugging Face's `rope_parameters`: every setting, so that no reader has to know a default."""
        settings = {_NAMES[name]: getattr(self, _NAMES[name]) for name in _SETTINGS[self.rope_type]}
        return {"rope_theta": rope_theta, "rope_type": self.rope_type, "factor": self.factor, **settings}

    def __str__(self) -> str:
        """Return it as `--rope-scaling` takes it."""
        settings = [f",{name}={getattr(self, _NAMES[name])!r}" for name in _SETTINGS[self.rope_type]]
        return f"{self.rope_type}:{self.factor!r}{''.join(settings)}"


def parse(text: str, longest: int, name: str = "--rope-scaling") -> RopeScaling | None:
    """Return the scaling that `TYPE:FACTOR[,SETTING=NUMBER...]` describes; None for `none` and `ntk:FACTOR`.

    Args:
        longest: tokens of the longest sequence; the original length is this / FACTOR where it is not given.

    Raises:
        UserError: it describes none.
    """
    kind, factor, settings = _split(text, name)
    if kind in (NONE, NTK):
        return None
    if kind == "yarn" and "original" not in settings and longest < factor:
        raise UserError(f"{name} {text}: sequences of {longest} tokens are shorter than the factor: lower it")
    values: dict[str, Any] = {_NAMES[setting]: value for setting, value in settings.items()}
    if kind != "linear":
        values["original_max_position_embeddings"] = int(settings.get("original", longest / factor))
    if kind == "yarn":
        values.setdefault("attention_factor", yarn_attention_factor(factor))
    try:
        return RopeScaling(kind, factor, **values)  # type: ignore[arg-type]
    except UserError as error:
        raise UserError(f"{name} {text}: {error}") from None


def ntk_theta(text: str, rope_theta: float, head_dim: int) -> float:
    """Return the base of the wavelengths under `--rope-scaling`: with `ntk:FACTOR` the longest is FACTOR times as long.

    The base is multiplied by FACTOR ** (head_dim / (head_dim - 2)) (bloc97 2023), and nothing else changes.
    """
    kind, factor, _ = _split(text, "--rope-scaling")
    if kind != NTK:
        return rope_theta
    if head_dim <= 2:
        raise UserError(f"--rope-scaling {text}: heads of width {head_dim} have one wavelength: use linear")
    return float(rope_theta * factor ** (head_dim / (head_dim - 2)))


def with_original(text: str, original: int) -> str:
    """Return the flag's text with the original length in it, where its type reads one and it does not say."""
    kind, factor, settings = _split(text, "--rope-scaling")
    if kind in (NONE, NTK, "linear") or "original" in settings:
        return text
    scaling = parse(text, int(factor * original) + 1)
    assert scaling is not None
    return str(replace(scaling, original_max_position_embeddings=original))


def _split(text: str, name: str) -> tuple[str, float, dict[str, float]]:
    head, *rest = text.split(",")
    kind, _, number = head.partition(":")
    kinds = (*_SETTINGS, NTK)
    usage = f"give none, or TYPE:FACTOR with a type of {', '.join(kinds)}, such as yarn:8"
    if text == NONE:
        return NONE, 1.0, {}
    if kind not in kinds:
        raise UserError(f"{name} {text}: unknown type {kind!r}: {usage}")
    settings = {}
    for part in rest:
        setting, _, value = part.partition("=")
        if setting not in _SETTINGS.get(kind, ()):
            known = ", ".join(_SETTINGS.get(kind, ())) or "none"
            raise UserError(f"{name} {text}: {kind} has no setting {setting!r}: it has {known}")
        settings[setting] = _number(value, f"{name} {text}: {setting}")
    factor = _number(number, f"{name} {text}: the factor")
    if not 1 <= factor < math.inf:
        raise UserError(f"{name} {text}: the factor is {factor:g}: it must be a number >= 1")
    return kind, factor, settings


def _number(text: str, name: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UserError(f"{name} is {text!r}: give a number") from None


def yarn_attention_factor(factor: float, mscale: float | None = None, mscale_all_dim: float | None = None) -> float:
    """Return YaRN's own attention factor (section 3.4), in DeepSeek's form where both scales are given."""

    def sharper(scale: float) -> float:
        return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0

    if mscale and mscale_all_dim:
        return sharper(mscale) / sharper(mscale_all_dim)
    return sharper(1.0)
