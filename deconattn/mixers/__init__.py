"""Token mixers, one file a variant; importing this package registers the seven of the paper, others on demand."""

from deconattn.mixers.approximate import Approximate
from deconattn.mixers.base import Mixer
from deconattn.mixers.cache import LayerCache, Step, SumCache
from deconattn.mixers.context import FixedStream, MixerContext
from deconattn.mixers.costs import Workload
from deconattn.mixers.decoding import Decoding
from deconattn.mixers.fixedseq import FixedSeq
from deconattn.mixers.heads import HeadMixer
from deconattn.mixers.map_blocks import MapBlock
from deconattn.mixers.mlp import MLP
from deconattn.mixers.nonapproximate import NonApproximate
from deconattn.mixers.principles import PRINCIPLES, Principles
from deconattn.mixers.projected import ProjectedMixer
from deconattn.mixers.registry import (
    known_names,
    mixer_class,
    register,
    relaxed_by,
    unknown_names,
    variant_names,
    zoo_names,
)
from deconattn.mixers.rndemb import RndEmb
from deconattn.mixers.standard import Standard
from deconattn.mixers.staticemb import StaticEmb

__all__ = [
    "MLP",
    "PRINCIPLES",
    "Approximate",
    "Decoding",
    "FixedSeq",
    "FixedStream",
    "HeadMixer",
    "LayerCache",
    "MapBlock",
    "Mixer",
    "MixerContext",
    "NonApproximate",
    "Principles",
    "ProjectedMixer",
    "RndEmb",
    "Standard",
    "StaticEmb",
    "Step",
    "SumCache",
    "Workload",
    "known_names",
    "mixer_class",
    "register",
    "relaxed_by",
    "unknown_names",
    "variant_names",
    "zoo_names",
]
