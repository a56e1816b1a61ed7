"""DeconAttn: the wind tunnel for attention."""

from deconattn.hf.register import register as _register_with_transformers

_register_with_transformers()
