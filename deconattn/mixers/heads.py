"""Several mixers in one layer, by heads: `standard[0-5]+nonapproximate[6-8]`.

A part is the mixer of a layer that has those heads alone: its parameters match standard attention's of as many heads,
and so do all parts' together. Where they are standard attention's own (names and shapes), the part has none: it reads
its heads' rows of the layer's `q_proj`, `k_proj` and `v_proj`, its heads go through the layer's `o_proj` beside the
others', and query/key norms are the layer's. These projections have rows for such parts' heads alone, in their order.
Any other part has all of its weights as `parts.N`, and its output is added.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from itertools import accumulate
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from deconattn.errors import UserError
from deconattn.layers.borrowed import BorrowedModule, BorrowedRows
from deconattn.layers.config import ModelConfig
from deconattn.layers.head_parts import HeadPart, check_heads, head_parts, spelled
from deconattn.layers.linear import Linear, PartedLinear
from deconattn.layers.shards import part_bounds
from deconattn.layers.splits import Split, column, row
from deconattn.mixers.base import Mixer
from deconattn.mixers.context import MixerContext
from deconattn.mixers.costs import Workload
from deconattn.mixers.map_blocks import MapBlock
from deconattn.mixers.parts_decoding import PartsDecoding
from deconattn.mixers.principles import Principles
from deconattn.mixers.projected import ProjectedMixer
from deconattn.mixers.registry import family, mixer_class

PROJECTIONS = ("q_proj", "k_proj", "v_proj")
NORMS = ("q_norm", "k_norm")


class HeadMixer(Mixer):
    """A layer's heads in parts, each of a mixer; :func:`by_heads` makes a subclass for each name.

    Attributes:
        held: numbers of the parts of which this rank has heads, in order.
    """

    heads_of: ClassVar[tuple[HeadPart, ...]]
    """Which heads are which part's."""
    mixers: ClassVar[tuple[type[Mixer], ...]]
    """The parts' classes."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        parts = [mixer(own) for mixer, own in self.of(config)]
        self.shared = tuple(number for number, (mixer, own) in enumerate(self.of(config)) if is_attention(mixer, own))
        self._heads, self._served = self.shared_heads(config)
        if self.shared:
            self._share(config, parts)
        for part in parts:
            vars(part)["splits"] = None  # tensor parallelism is of the layer as a whole
        self.parts = nn.ModuleList(parts)
        self._lay_out(range(self._heads), range(self._served))

    @property
    def splits(self) -> Mapping[str, Split]:  # type: ignore[override]
        """Splits of the layer's own projections, and of the parts that have their own."""
        splits: dict[str, Split] = {}
        if self.shared:
            queries, keys = column(self._heads), column(self._served)
            splits = {"q_proj": queries, "k_proj": keys, "v_proj": keys, "o_proj": row(self._heads)}
        for number, (mixer, own) in enumerate(self.of(self.config)):
            if number not in self.shared:
                for name, split in (mixer.splits or {}).items():
                    pieces = None if split.pieces is None else split.count(own, 0)
                    splits[f"parts.{number}.{name}"] = replace(split, pieces=pieces)
        return splits

    def _share(self, config: ModelConfig, parts: list[Mixer]) -> None:
        """Build the projections of the parts that share them, and give these parts views of them."""
        widths = self._heads * config.head_dim, self._served * config.head_dim
        self.q_proj = PartedLinear(config.hidden_size, widths[0], bias=config.attention_bias)
        self.k_proj = PartedLinear(config.hidden_size, widths[1], bias=config.attention_bias)
        self.v_proj = PartedLinear(config.hidden_size, widths[1], bias=config.attention_bias)
        self.o_proj = Linear(widths[0], config.hidden_size, bias=False)
        if config.qk_norm:
            self.q_norm = nn.RMSNorm(config.head_dim, eps=config.rms_norm_eps)
            self.k_norm = nn.RMSNorm(config.head_dim, eps=config.rms_norm_eps)
        for part in (parts[number] for number in self.shared):
            for name in PROJECTIONS:
                setattr(part, name, BorrowedRows(self, name))
            for name in NORMS if config.qk_norm else ():
                setattr(part, name, BorrowedModule(self, name))
            part.o_proj = nn.Identity()

    def became_part(self, rank: int, ranks: int) -> None:
        if self.shared:
            counts = self._heads, self._served
            self._lay_out(*(range(*part_bounds(count, count, ranks)[rank]) for count in counts))

    def _lay_out(self, heads: range, served: range) -> None:
        """Note which of the shared heads, and of those of keys and values, this rank has: numbers among the shared."""
        held = set(range(len(self.parts))) - set(self.shared)
        query_ends = [*accumulate(self.part(number).config.num_attention_heads for number in self.shared)]
        served_ends = [*accumulate(self.part(number).config.num_key_value_heads for number in self.shared)]
        for number, query_end, served_end in zip(self.shared, query_ends, served_ends, strict=True):
            part = self.part(number)
            ours = _meet(range(query_end - part.config.num_attention_heads, query_end), heads)
            theirs = _meet(range(served_end - part.config.num_key_value_heads, served_end), served)
            for name, here, first in (("q_proj", ours, heads), ("k_proj", theirs, served), ("v_proj", theirs, served)):
                rows: BorrowedRows = getattr(part, name)
                rows.start = (here.start - first.start) * self.config.head_dim
                rows.stop = (here.stop - first.start) * self.config.head_dim
            if ours:
                held.add(number)
        self.held = tuple(sorted(held))

    def taken_from(self, name: str, value: Tensor) -> dict[str, Tensor]:
        """Return each part's heads of a projection that has all heads of the layer."""
        config, module = self.config, name.partition(".")[0]
        heads = {"q_proj": config.num_attention_heads, "o_proj": config.num_attention_heads}
        heads |= dict.fromkeys(("k_proj", "v_proj"), config.num_key_value_heads)
        found, shared = {name: value}, []
        if module in NORMS:
            found |= {f"parts.{number}.{name}": value for number in range(len(self.parts))}
        dim = int(module == "o_proj")
        if module not in heads or value.shape[dim] != heads[module] * config.head_dim:
            return found
        for number, part in enumerate(self.heads_of):
            first, count = (one * heads[module] // config.num_attention_heads for one in (part.first, part.count))
            piece = value.narrow(dim, first * config.head_dim, count * config.head_dim)
            if number in self.shared:
                shared.append(piece)
            else:
                found[f"parts.{number}.{name}"] = piece
        return found | ({name: torch.cat(shared, dim=dim)} if shared else {})

    def part(self, number: int) -> Mixer:
        """Return a part."""
        part = self.parts[number]
        assert isinstance(part, Mixer)
        return part

    def forward(self, hidden: Tensor, static: Tensor | None, context: MixerContext) -> Tensor:
        contexts = self._contexts(context)

        def mixed(number: int) -> Tensor:
            output: Tensor = self.parts[number](hidden, static, contexts[number])
            return context.read(output)

        return self.together(mixed)

    def together(self, mixed: Callable[[int], Tensor]) -> Tensor:
        """Join what parts give, by their numbers: heads before the output projection, or outputs [R, L, d]."""
        heads, total = [], None
        for number in self.held:
            if number in self.shared:
                heads.append(mixed(number))
            else:
                total = mixed(number) if total is None else total + mixed(number)
        if heads:
            output = self.o_proj(torch.cat(heads, dim=-1) if len(heads) > 1 else heads[0])
            total = output if total is None else output + total
        assert total is not None
        return total

    def fixed_by_part(self, fixed: tuple[Tensor, ...]) -> dict[int, tuple[Tensor, ...]]:
        """Deal the tensors of :meth:`PartsDecoding.fixed_part` out to the parts that read a fixed stream."""
        readers = [number for number in self.held if self.part(number).fixed_stream is not None]
        each = len(fixed) // max(1, len(readers))  # one mixer reads the stream, in however many parts
        dealt: dict[int, tuple[Tensor, ...]] = dict.fromkeys(self.held, ())
        return dealt | {number: fixed[index * each : (index + 1) * each] for index, number in enumerate(readers)}

    def _contexts(self, context: MixerContext) -> dict[int, MixerContext]:
        if context.fixed is None:
            return dict.fromkeys(self.held, context)
        return {
            number: replace(context, fixed=fixed or None) for number, fixed in self.fixed_by_part(context.fixed).items()
        }

    def map_blocks(self, hidden: Tensor, static: Tensor | None, context: MixerContext, size: int) -> Iterator[MapBlock]:
        """Yield blocks of the heads that have a map, in order; those of parts that have none to show are left out."""
        contexts = self._contexts(context)
        parts = [self.part(number).map_blocks(hidden, static, contexts[number], size) for number in self.held]
        while blocks := [block for part in parts if (block := next(part, None)) is not None]:
            scores = [one.scores for one in blocks if one.scores is not None]
            columns = max((one.shape[3] for one in scores), default=0)
            # A score a token, not a pair, has one column: the others' have none to add.
            wide = [pad(one, (0, columns - one.shape[3]), value=-torch.inf) for one in scores]
            weights = torch.cat([block.weights for block in blocks], dim=1)
            yield MapBlock(weights, torch.cat(wide, dim=1) if wide else None)

    def reference(self, hidden: Tensor, static: Tensor | None, context: MixerContext) -> Tensor:
        return self.together(lambda number: self.part(number).reference(hidden, static, context))

    @classmethod
    def made_of(cls) -> tuple[type[Mixer], ...]:
        return cls.mixers

    @classmethod
    def of(cls, config: ModelConfig) -> list[tuple[type[Mixer], ModelConfig]]:
        """Return each part's class, and the configuration of a model with its heads alone.

        Raises:
            UserError: the layer has other heads than the parts, or a part has some of a group.
        """
        check_heads(spelled(cls.heads_of), config.num_attention_heads, config.num_key_value_heads)
        group = config.num_attention_heads // config.num_key_value_heads
        return [(mixer, _with_heads(config, part.count, part.count // group)) for mixer, part in cls._each()]

    @classmethod
    def _each(cls) -> Iterator[tuple[type[Mixer], HeadPart]]:
        return zip(cls.mixers, cls.heads_of, strict=True)

    @classmethod
    def shared_heads(cls, config: ModelConfig) -> tuple[int, int]:
        """Return how many heads, and of keys and values, the layer's own projections have."""
        shared = [own for mixer, own in cls.of(config) if is_attention(mixer, own)]
        return sum(own.num_attention_heads for own in shared), sum(own.num_key_value_heads for own in shared)

    @classmethod
    def check_parts(cls, config: ModelConfig, ranks: int) -> None:
        for mixer, part in cls._each():
            if mixer.splits is None:
                raise UserError(
                    f"{spelled(cls.heads_of)!r}: {part.mixer} declares no splits, so it cannot be cut by heads: "
                    "use it whole"
                )
        heads, served = cls.shared_heads(config)
        counts = [("the parts that share attention's projections", heads, served)] if heads else []
        for (mixer, own), part in zip(cls.of(config), cls.heads_of, strict=True):
            pieces = {split.pieces for split in (mixer.splits or {}).values()} - {None}
            if not is_attention(mixer, own) and pieces:
                grouped = "num_key_value_heads" in pieces
                key_value_heads = own.num_key_value_heads if grouped else own.num_attention_heads
                counts.append((str(part), own.num_attention_heads, key_value_heads))
        name = repr(spelled(cls.heads_of))
        for what, heads, served in counts:
            copied = served == config.num_key_value_heads and ranks % served == 0
            if heads % ranks or (served % ranks and not copied):
                keys = "" if served == heads else f" over {served} key/value heads"
                raise UserError(
                    f"--tp {ranks} does not divide the {heads} heads{keys} of {what} in {name}: use a divisor, or "
                    "other parts"
                )
        # Ranks that run other mixers would communicate in another order.
        first = cls._shared_on(config, 0, ranks)
        for rank in range(1, ranks):
            if cls._shared_on(config, rank, ranks) != first:
                raise UserError(
                    f"--tp {ranks}: of {name}, ranks 0 and {rank} would have different parts: order them so that each "
                    f"{cls.shared_heads(config)[0] // ranks} heads that share projections have the same, or use --tp 1"
                )

    @classmethod
    def _shared_on(cls, config: ModelConfig, rank: int, ranks: int) -> list[tuple[type[Mixer], int]]:
        """Return the mixers of a rank's heads that share projections, and how many heads are each's."""
        heads, found, end = cls.shared_heads(config)[0], [], 0
        if heads:
            held = range(*part_bounds(heads, heads, ranks)[rank])
            for mixer, own in cls.of(config):
                if is_attention(mixer, own):
                    here = _meet(range(end, end := end + own.num_attention_heads), held)
                    found += [(mixer, len(here))] if here else []
        return found

    @classmethod
    def num_parameters(cls, config: ModelConfig) -> int:
        parts = sum(mixer.num_parameters(own) for mixer, own in cls.of(config))
        shared = sum(is_attention(mixer, own) for mixer, own in cls.of(config))
        return parts - max(0, shared - 1) * config.qk_norm * 2 * config.head_dim

    @classmethod
    def forward_flops(cls, config: ModelConfig, work: Workload) -> int:
        return sum(mixer.forward_flops(own, work) for mixer, own in cls.of(config))

    @classmethod
    def activation_bytes(cls, config: ModelConfig, work: Workload) -> int:
        """Bytes of all parts, what they read once, and the heads that are joined before the output projection."""
        heads, served = cls.shared_heads(config)
        shared = cls._shared_on(config, 0, work.tp_size)
        parts = [
            (mixer, _with_heads(config, here, max(1, here * served // heads)), replace(work, tp_size=1))
            for mixer, here in shared
        ]
        parts += [(mixer, own, work) for mixer, own in cls.of(config) if not is_attention(mixer, own)]
        static = sum(mixer.needs_static_embeddings for mixer, _, _ in parts)
        again = config.hidden_size * (len(parts) - 1 + max(0, static - 1))
        joined = config.head_dim * sum(here for _, here in shared) if len(shared) > 1 else 0
        total = sum(mixer.activation_bytes(own, its_work) for mixer, own, its_work in parts)
        return total + work.bytes_per_element * work.tokens * (joined - again)


@family
def by_heads(name: str) -> type[Mixer] | None:
    """Return the mixer of a name with heads, None for another name.

    Raises:
        UserError: parts that no layer can be made of.
        KeyError: a part's mixer is not known.
    """
    parts = head_parts(name)
    return _made(parts, tuple(mixer_class(part.mixer) for part in parts)) if parts else None


@lru_cache(maxsize=4096)
def _made(parts: tuple[HeadPart, ...], mixers: tuple[type[Mixer], ...]) -> type[Mixer]:
    name = spelled(parts)
    readers = list(dict.fromkeys(part.mixer for part, mixer in zip(parts, mixers, strict=True) if mixer.fixed_stream))
    if len(readers) > 1:
        raise UserError(f"{name!r}: {' and '.join(readers)} read fixed streams, and a layer reads one: use one of them")
    members: dict[str, Any] = {
        "__module__": __name__,
        "__qualname__": name,
        "heads_of": parts,
        "mixers": mixers,
        "decoding": PartsDecoding(mixers),
        "fixed_stream": next((mixer.fixed_stream for mixer in mixers if mixer.fixed_stream), None),
        "needs_static_embeddings": any(mixer.needs_static_embeddings for mixer in mixers),
        "principles": _principles(mixers),
    }
    return type(name, (HeadMixer,), members)


def _principles(mixers: tuple[type[Mixer], ...]) -> Principles | None:
    """Return what all heads that mix tokens keep; positions count where they do for any."""
    known = [mixer.principles for mixer in mixers if mixer.principles is not None]
    if len(known) < len(mixers):
        return None
    mixing = [one for one in known if one.mixes_tokens]
    return Principles(
        mixes_tokens=bool(mixing),
        sequence_dependent=all(one.sequence_dependent for one in mixing),
        softmax_form=all(one.softmax_form for one in mixing),
        current_queries_and_keys=all(one.current_queries_and_keys for one in mixing),
        position_dependent=any(one.position_dependent for one in known),
    )


@lru_cache(maxsize=256)
def is_attention(mixer: type[Mixer], config: ModelConfig) -> bool:
    """Whether a mixer's tensors are standard attention's, by their names and shapes."""
    if not issubclass(mixer, ProjectedMixer):
        return False
    widths = {"q_proj": config.query_size, "k_proj": config.key_value_size, "v_proj": config.key_value_size}
    shapes: dict[str, tuple[int, ...]] = {f"{name}.weight": (n, config.hidden_size) for name, n in widths.items()}
    shapes["o_proj.weight"] = (config.hidden_size, config.query_size)
    if config.attention_bias:
        shapes |= {f"{name}.bias": (width,) for name, width in widths.items()}
    if config.qk_norm:
        shapes |= {f"{name}.weight": (config.head_dim,) for name in NORMS}
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in mixer(config).state_dict().items()} == shapes


def _with_heads(config: ModelConfig, heads: int, key_value_heads: int) -> ModelConfig:
    names = ("standard",) * config.num_hidden_layers
    return replace(config, num_attention_heads=heads, num_key_value_heads=key_value_heads, layer_variants=names)


def _meet(one: range, other: range) -> range:
    start = max(one.start, other.start)
    return range(start, max(start, min(one.stop, other.stop)))
