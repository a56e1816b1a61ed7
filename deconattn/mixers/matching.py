"""Widths by which a mixer with other projections than attention's has as many parameters as standard attention."""

from collections.abc import Callable

from deconattn.layers.config import ModelConfig
from deconattn.mixers.costs import attention_parameters


def matched_width(config: ModelConfig, uses: int, a_channel: int = 0, extra: int = 0) -> int:
    """Return the width between projections, of channels that form no heads, that matches standard attention best.

    Args:
        uses: projections between the hidden states and the channels, the output projection among them.
        a_channel: other parameters of each channel, such as a bias.
        extra: other parameters of the mixer.
    """
    return max(1, round((attention_parameters(config) - extra) / (uses * config.hidden_size + a_channel)))


def matched_dims(
    config: ModelConfig, key_uses: float, value_uses: float, extra: int = 0, even_keys: bool = False
) -> tuple[int, int]:
    """Return widths a head of keys and of values, as near to `head_dim` as the parameters of standard attention allow.

    Args:
        key_uses: projections between the hidden states and all heads' keys (queries are as wide): `hidden_size *
            num_attention_heads` parameters for each of a head's channels, of fewer heads a fraction. 0: there are none,
            and the first width is 0.
        value_uses: such projections of values, the output projection among them.
        extra: other parameters of the mixer.
        even_keys: queries and keys are to be rotated, so that their width must be even.

    Of the widths that come within 0.1 % of a layer those count that are nearest to each other in ratio to `head_dim`;
    where none do, those that come nearest.
    """
    target = attention_parameters(config)
    allowed = (target + 3 * config.hidden_size * config.intermediate_size) / 1000
    a_channel = config.hidden_size * config.num_attention_heads
    step = 2 if even_keys else 1
    found: list[tuple[float, float, int, int]] = []
    for keys in range(step, 4 * config.head_dim + 1, step) if key_uses else (0,):
        left = target - extra - keys * key_uses * a_channel
        values = max(1, round(left / (value_uses * a_channel)))
        missed = abs(left - values * value_uses * a_channel)
        shape = max(values, keys) / min(values, keys) if keys else 1.0
        found.append((0.0 if missed <= allowed else missed, shape, keys, values))
    _, _, keys, values = min(found)
    return keys, values


def matched_widths(
    config: ModelConfig, count: Callable[[int, int], int], value_ratio: float = 1.0, even_keys: bool = False
) -> tuple[int, int]:
    """Return widths a head of keys and of values, as :func:`matched_dims` does, of a mixer that says what it has.

    Args:
        count: parameters for widths of keys and of values; as many more for each channel of the values.
        value_ratio: the width of the values divided by that of the keys, as it should be.
    """
    target = attention_parameters(config)
    allowed = (target + 3 * config.hidden_size * config.intermediate_size) / 1000
    found: list[tuple[bool, float, float, int, int]] = []
    step = 2 if even_keys else 1
    for keys in range(step, 4 * config.head_dim + 1, step):
        without, a_channel = count(keys, 0), count(keys, 1) - count(keys, 0)
        values = max(1, round((target - without) / a_channel))
        missed = abs(target - without - values * a_channel)
        ratio = values / keys / value_ratio
        shape = max(ratio, 1 / ratio)
        # A head with a single key channel is none, however well its parameters match.
        found.append((shape > 2, 0.0 if missed <= allowed else missed, shape, keys, values))
    *_, keys, values = min(found)
    return keys, values
