"""The same model on every topology: losses, gradient norms and every gradient against one process in float64.

python benchmarks/parity.py                 # into benchmarks/parity.md

The reference is the model in float64 in one process, torch's AdamW, and nothing else: no DeepSpeed, no ranks. A case
runs the same five steps through our engine on CPU ranks. AdamW's first moment after the first step is (1 - beta1)
times the clipped gradient, so that it shows every gradient whatever holds it (ZeRO partitions, pipeline stages).
"""

import dataclasses
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from deconattn.cli import parse, run
from deconattn.config.command_line import parse_training_flags
from deconattn.config.flags import TrainingFlags, model_config
from deconattn.data import Batch
from deconattn.durable import write_text
from deconattn.mixers import variant_names, zoo_names
from deconattn.model.causal_lm import CausalLM
from deconattn.model.init import initialize
from tests.ranks import Ranks

if TYPE_CHECKING:
    from deconattn.train.zero_state import Held

STEPS = 5
LEARNING_RATE = 1e-3
VOCABULARY = 96
MODEL = (
    "--hidden-size 32 --intermediate-size 48 --num-hidden-layers 4 --num-attention-heads 4 --num-key-value-heads 2 "
    f"--vocab-size {VOCABULARY} --seq-len 32 --global-batch-size 8 --micro-batch-size 4 --steps {STEPS} "
    "--initializer-range 0.1"
)
OUT = Path(__file__).parent / "parity.md"


@dataclass(frozen=True)
class Topology:
    """A column of the table: how many ranks, and the flags that arrange them."""

    name: str
    world_size: int
    flags: str = ""


TOPOLOGIES = (
    Topology("TP2", 2, "--tp 2"),
    Topology("TP2+SP", 2, "--tp 2 --sequence-parallel"),
    Topology("PP2", 2, "--pp 2"),
    *(Topology(f"DP2 ZeRO-{stage}", 2, f"--zero {stage}") for stage in range(4)),
    Topology("TP2xPP2", 4, "--tp 2 --pp 2"),
    Topology("PP2xDP2", 4, "--pp 2 --zero 1"),
)
HEAVIER = (
    Topology("PP4", 4, "--pp 4"),
    Topology("TP4", 4, "--tp 4"),
    Topology("TP4+SP", 4, "--tp 4 --sequence-parallel"),
    *(Topology(f"TP2xDP2 ZeRO-{stage}", 4, f"--tp 2 --zero {stage}") for stage in range(4)),
    Topology("TP4+SP, recompute mixer", 4, "--tp 4 --sequence-parallel --recompute mixer"),
    Topology("TP2xDP2 ZeRO-3, recompute mlp", 4, "--tp 2 --zero 3 --recompute mlp"),
    Topology("TP2+SPxPP2 ZeRO-1, recompute mlp", 4, "--tp 2 --sequence-parallel --pp 2 --zero 1 --recompute mlp"),
    Topology("TP2+SPxPP2 ZeRO-1, checkpointing", 4, "--tp 2 --sequence-parallel --pp 2 --zero 1 --recompute layer"),
    Topology("TP2+SPxDP2 ZeRO-3, checkpointing", 4, "--tp 2 --sequence-parallel --zero 3 --recompute layer"),
)
CONTEXT = (
    Topology("CP2", 2, "--cp 2"),
    Topology("CP4", 4, "--cp 4"),
    Topology("TP2xCP2", 4, "--tp 2 --cp 2"),
    Topology("TP2+SPxCP2", 4, "--tp 2 --sequence-parallel --cp 2"),
    Topology("PP2xCP2 ZeRO-1", 4, "--pp 2 --cp 2 --zero 1"),
    *(Topology(f"CP2xDP2 ZeRO-{stage}", 4, f"--cp 2 --zero {stage}") for stage in range(4)),
    Topology("CP2xDP2 ZeRO-3, recompute mixer", 4, "--cp 2 --zero 3 --recompute mixer"),
    Topology("CP4 ZeRO-2, checkpointing", 4, "--cp 4 --zero 2 --recompute layer"),
)
"""Ranks that share each sequence."""
UNDIVIDED = (
    Topology("CP3", 3, "--cp 3"),
    Topology("CP4", 4, "--cp 4"),
    Topology("TP2xCP2", 4, "--tp 2 --cp 2"),
    Topology("CP3, recompute mixer", 3, "--cp 3 --recompute mixer"),
    Topology("CP3 ZeRO-3, checkpointing", 3, "--cp 3 --zero 3 --recompute layer"),
)
"""Such ranks whose number does not divide two heads, or one."""
BF16 = tuple(
    dataclasses.replace(topology, name=f"{topology.name} bf16", flags=f"--precision bf16 {topology.flags}")
    for topology in TOPOLOGIES
    if topology.name != "DP2 ZeRO-0"  # bf16 needs ZeRO
)
_FEATURES = "--tie-embeddings --qk-norm --no-attention-bias --doc-mask --micro-batch-size 2"
MIXED = {
    "rndemb, staticemb, fixedseq, nonapproximate; tied, QK norm, document masks": (
        f"{_FEATURES} --pattern rndemb,staticemb,fixedseq,nonapproximate"
    ),
    "approximate, mlp, standard, staticemb; tied, QK norm, document masks": (
        f"{_FEATURES} --pattern approximate,mlp,standard,staticemb"
    ),
}
"""All variants in two models, with whatever else crosses ranks."""
BY_HEADS = {
    "by heads, projections shared; tied, QK norm, document masks": (
        f"{_FEATURES} --num-key-value-heads 4 --pattern standard[0]+nonapproximate[1]+standard[2]+nonapproximate[3],"
        "approximate[0]+rndemb[1]+approximate[2]+rndemb[3],staticemb[0-1]+mlp[2-3],standard"
    ),
    "by heads, projections of their own": (
        "--num-key-value-heads 4 --pattern fixedseq[0-1]+mlp[2-3],average[0-1]+shift[2-3],alibi[0-1]+standard[2-3],mlp"
    ),
}
"""Layers of several mixers; what TP4 or TP2 cannot cut alike is not among them."""
_TWO_HEADS = "--num-attention-heads 2 --seq-len 36"
TWO_HEADS = {
    "standard, staticemb, nope; two heads; tied, QK norm, document masks": (
        f"{_FEATURES} {_TWO_HEADS} --num-key-value-heads 1 --pattern standard,staticemb,nope,standard"
    ),
    "standard, staticemb, rndemb; two heads": f"{_TWO_HEADS} --pattern standard,staticemb,rndemb,standard",
}
"""Models with fewer heads than there are ranks for each sequence; of 36 tokens, which 3 divides."""
ZOO = {f"{variant}, uniform": f"--variant {variant} --pattern uniform" for variant in zoo_names()}
ALONE = Topology("one process", 1)
"""No topology: what fp32 alone does. A norm of small numbers, which a mixer of the field may have, magnifies it."""
HEAD = f"""# Parity

Made by `python benchmarks/parity.py` (see its docstring): {STEPS} training steps of a 4-layer model with 4 query
and 2 key/value heads on CPU ranks, against one process in float64 that knows no ranks. Each cell: largest relative
error of the losses / largest error of any element of any gradient, relative to the largest of its tensor. In brackets
the number of ranks. Of the field's mixers some magnify rounding, in one process as on many ranks: in bf16 the gradients
of these small models are then rounding alone, which tests/parallel/test_parity.py measures in one process and allows
for.
"""


@dataclass(frozen=True)
class Errors:
    """How far a case is from the reference.

    Attributes:
        loss: largest relative error of the five losses.
        grad_norm: largest relative error of the five gradient norms.
        gradient: largest error of any element of any gradient of the first step, relative to its tensor's largest
            element (at least a hundredth of the model's largest: a key's bias hardly has a gradient).
        where: the tensor in which that is.
    """

    loss: float
    grad_norm: float
    gradient: float
    where: str


def compare(ranks: Ranks, topology: Topology, model_flags: str) -> Errors:
    """Run one case."""
    reference = single_process(model_flags)
    arguments = f"{MODEL} {model_flags} --precision fp32 {topology.flags}".split()
    return Errors(**ranks(train_case, arguments=arguments, reference=reference))


@cache
def single_process(model_flags: str) -> dict[str, Any]:
    """Losses and norms of all steps, and the first step's clipped gradients, in float64."""
    flags = parse_training_flags(f"{MODEL} {model_flags} --precision fp32".split())
    model = CausalLM(model_config(flags.model, VOCABULARY, flags.data.seq_len))
    initialize(model, flags.optimization.seed, _fixed_ids(flags))
    model.double()
    parameters = model.canonical_parameters()
    decay = [{"params": [p for p in parameters.values() if (p.ndim >= 2) == matrix]} for matrix in (True, False)]
    optimization = flags.optimization
    betas = (optimization.adam_beta1, optimization.adam_beta2)
    optimizer = torch.optim.AdamW(decay, LEARNING_RATE, betas, optimization.adam_eps, weight_decay=0.0)
    optimizer.param_groups[0]["weight_decay"] = optimization.weight_decay
    losses, norms, gradients = [], [], {}
    for step in range(STEPS):
        batch = sample_batch(
            flags, range(step * optimization.global_batch_size, (step + 1) * optimization.global_batch_size)
        )
        loss = model(batch.input_ids, batch.labels, batch.position_ids, batch.document_ids)
        optimizer.zero_grad()
        (loss.total / batch.labels.numel()).backward()
        norms.append(float(nn.utils.clip_grad_norm_(parameters.values(), optimization.clip_grad)))
        losses.append(float(loss.total.detach() / loss.labels))
        if step == 0:
            gradients = {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in parameters.items()}
        optimizer.step()
    return {"losses": losses, "norms": norms, "gradients": gradients}


def train_case(arguments: list[str], reference: dict[str, Any]) -> dict[str, Any]:
    """On every rank: five steps through the engine; how far they are from the reference."""
    from deconattn.parallel.topology import Topology
    from deconattn.train.engine import Engine, empty_model

    flags = parse_training_flags(arguments)
    config = model_config(flags.model, VOCABULARY, flags.data.seq_len)
    topology = Topology.create(flags.engine.tp, flags.engine.pp, flags.engine.cp)
    model = empty_model(config, flags, topology)
    initialize(model, flags.optimization.seed, _fixed_ids(flags))
    engine = Engine(model, flags, topology)
    losses, norms, worst = [], [], (0.0, "")
    for step in range(STEPS):
        result = engine.train_step(_micro_batches(flags, step, topology.dp_rank, topology.dp_size), LEARNING_RATE)
        losses.append(result.loss)
        norms.append(result.grad_norm)
        if step == 0:
            worst = _worst_gradient(engine.state.held(), 1 - flags.optimization.adam_beta1, reference["gradients"])
    engine.destroy()
    return {
        "loss": _worst_relative(losses, reference["losses"]),
        "grad_norm": _worst_relative(norms, reference["norms"]),
        "gradient": worst[0],
        "where": worst[1],
    }


def sample_batch(flags: TrainingFlags, numbers: range) -> Batch:
    """Random tokens, a function of the sample's number alone; documents of about ten tokens with --doc-mask."""
    length = flags.data.seq_len
    rows = []
    for number in numbers:
        generator = torch.Generator().manual_seed(number)
        rows.append(torch.randint(VOCABULARY, (2, length + 1), generator=generator))
    tokens, drawn = torch.stack(rows).unbind(1)
    labels = tokens[:, 1:].clone()
    if not flags.data.doc_mask:
        return Batch(tokens[:, :-1], labels)
    starts = drawn[:, :-1] % 10 == 0
    starts[:, 0] = False
    labels[:, :-1][starts[:, 1:]] = -100
    indices = torch.arange(length).expand_as(starts)
    positions = indices - (indices * starts).cummax(dim=1).values
    return Batch.of(torch.stack([tokens[:, :-1], labels, positions, starts.long().cumsum(dim=1)]))


def _micro_batches(flags: TrainingFlags, step: int, rank: int, ranks: int) -> Iterator[Batch]:
    whole, micro = flags.optimization.global_batch_size, flags.optimization.micro_batch_size
    for start in range(step * whole + rank * micro, (step + 1) * whole, ranks * micro):
        yield sample_batch(flags, range(start, start + micro))


def _fixed_ids(flags: TrainingFlags) -> Tensor:
    return torch.randint(VOCABULARY, (flags.data.seq_len,), generator=torch.Generator().manual_seed(10**6))


def _worst_gradient(held: "Iterable[Held]", share: float, reference: dict[str, Tensor]) -> tuple[float, str]:
    """Of all ranks' parts of all tensors: first moments are `share` of the gradient after one step."""
    floor = max(float(gradient.abs().max()) for gradient in reference.values()) / 100
    errors, elements = [], Counter[str]()
    for part in held:
        whole = reference[part.name]
        expected = (part.shard.take(whole) if part.shard else whole).flatten()[part.first : part.last]
        error = float((part.values["exp_avg"].double() / share - expected).abs().max())
        errors.append((error / max(float(whole.abs().max()), floor), part.name))
        elements[part.name] += part.last - part.first
    everybody: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everybody, (errors, elements))
    seen = sum((counts for _, counts in everybody), Counter[str]())
    assert all(seen[name] >= whole.numel() for name, whole in reference.items()), seen
    return max(error for found, _ in everybody for error in found)


def _worst_relative(ours: list[float], reference: list[float]) -> float:
    return max(abs(a - b) / abs(b) for a, b in zip(ours, reference, strict=True))


@dataclass(frozen=True)
class Arguments:
    """Write the tables of errors, variant by topology."""

    out: Path = OUT
    """Where to."""


def main() -> None:
    arguments = parse(Arguments)
    groups = (
        ("fp32", TOPOLOGIES, dict(cases())),
        ("bf16", BF16, dict(cases())),
        ("fp32, heavier combinations", HEAVIER, MIXED),
        ("fp32, sequences shared by ranks", CONTEXT[:4], dict(cases())),
        ("fp32, sequences shared by ranks, heavier combinations", CONTEXT[4:], dict(_ours())),
        ("fp32, sequences shared by ranks that heads do not divide by", UNDIVIDED, TWO_HEADS),
    )
    ranks = {size: Ranks(size) for size in (2, 3, 4)}
    text = HEAD
    for title, topologies, models in groups:
        table = Table(topologies)
        for label, flags in models.items():
            errors = [compare(ranks[topology.world_size], topology, flags) for topology in topologies]
            print(f"{title}: {label}: loss {max(e.loss for e in errors):.0e}", file=sys.stderr)
            table.add(label, errors)
        text += f"\n## {title}\n\n{table}\n"
    for pool in ranks.values():
        pool.close()
    write_text(arguments.out, text)


def cases() -> Iterator[tuple[str, str]]:
    """Rows of the table: a name, and the flags of the model."""
    for variant in sorted(variant_names(), key=lambda name: name != "standard"):
        for pattern in ("uniform", "1:1") if variant != "standard" else ("uniform",):
            yield f"{variant}, {pattern}", f"--variant {variant} --pattern {pattern}"
    yield from ZOO.items()
    yield from MIXED.items()
    yield from BY_HEADS.items()


def _ours() -> Iterator[tuple[str, str]]:
    """Rows of the paper's variants."""
    return (case for case in cases() if case[0] not in ZOO and case[0] not in BY_HEADS)


class Table:
    """Markdown: a row a model, a column a topology."""

    def __init__(self, topologies: Sequence[Topology]) -> None:
        self._rows: list[tuple[str, list[Errors]]] = []
        self._head = "| | " + " | ".join(f"{t.name} ({t.world_size})" for t in topologies) + " |"
        self._rule = "| --- |" + " ---: |" * len(topologies)

    def add(self, label: str, errors: list[Errors]) -> None:
        self._rows.append((label, errors))

    def __str__(self) -> str:
        lines = [
            f"| {label} | " + " | ".join(f"{e.loss:.0e} / {e.gradient:.0e}" for e in errors) + " |"
            for label, errors in self._rows
        ]
        every = [e for _, errors in self._rows for e in errors]
        worst = max(every, key=lambda e: e.gradient)
        summary = (
            f"Largest: loss {max(e.loss for e in every):.1e}, gradient norm {max(e.grad_norm for e in every):.1e}, "
            f"gradient {worst.gradient:.1e} (`{worst.where}`)."
        )
        return "\n".join([self._head, self._rule, *lines, "", summary])


if __name__ == "__main__":
    run(main)
