"""Widths by which a mixer with other projections than attention's has as many parameters as standard attention."""

from deconattn.layers.config import ModelConfig
from deconattn.mixers.costs import attention_parameters


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
