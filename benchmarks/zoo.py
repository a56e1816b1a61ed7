r"""The table of all mixers, docs/zoo.md, from what was measured of them; it trains nothing itself.

    ALL=$(python benchmarks/zoo.py --names)
    python tools/probe.py --tasks mqar induction selective-copy --variants $ALL --out OUT  # into benchmarks/probes/zoo
    python tools/reproduce.py --table 1 --size tiny --patterns uniform --variants $ALL --seeds 3 --tokens 300000 \
        --train="--global-batch-size 2 --micro-batch-size 2 --adam-beta2 0.99" --lr-sweep 1.5e-3 3e-3 \
        --no-analysis --tasks piqa --limit 20 --out OUT  # its data and report into benchmarks/reproduction/zoo
    python benchmarks/training/cpu.py --size 70m --seq-len 2048 --batch-size 1 --variants $ALL --out OUT
    python benchmarks/training/growth.py
    python benchmarks/zoo.py

The variants of reproduce.py are all but `standard`, which it trains itself. What is not there yet is a dash.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.machine import RESULTS, ROOT
from deconattn import durable
from deconattn.cli import parse, run
from deconattn.config.flags import model_config
from deconattn.config.pattern import STANDARD
from deconattn.config.presets import size_defaults
from deconattn.layers.config import ModelConfig
from deconattn.mixers import Workload, known_names, mixer_class, relaxed_by
from deconattn.mixers.costs import attention_parameters
from deconattn.probing.findings import Findings, Kind
from deconattn.probing.request import UNIFORM
from deconattn.probing.results import read_results
from deconattn.reproduction.cells import LOSS
from deconattn.shown import markdown_table

NOTHING = "\N{EN DASH}"
SIZE, LENGTH = "70m", 2048
INTRODUCTION = """# All mixers side by side

Equal parameters (a layer's within 0.1 % of standard attention's), equal data, equal tuning. `--variant NAME` trains
each; its formula and paper are in the file of its name in [deconattn/mixers/zoo](../deconattn/mixers/zoo), the paper's
seven are in [deconattn/mixers](../deconattn/mixers). Rows that relax the same of the paper's principles stand together.

- **order**: whether the order of earlier tokens counts, beyond which ones they are.
- **state**: bytes that decoding holds of a sequence of 2,048 tokens, a layer at 70m's dimensions in bf16; *grows*: with
  the tokens.
- **parameters**: of a layer beside standard attention's, in parts of a whole layer.
- **step**: processor time of a training step over standard's at 70m's dimensions and 2,048 tokens, each beside one
  model of Hugging Face's.
- **growth**: what 8,192 tokens cost over 4,096, the mixer alone with its projections, in processor time: 2 is linear.
- Probes: accuracy in per cent, mean over difficulties and seeds, with half its 95 % interval
  ([docs/probes.md](probes.md)); models of two layers, the best of three learning rates for each.
- **loss**: of held-out text in nats a token after equal training{training}, mean over
  seeds with half its 95 % interval.

An interval over seeds says what another seed would change, not what another size or more data would. One thing that
width changes is known: output gates that are SiLUs (`gated-deltanet`, `gla`, `retention`, `mamba2`) start nearly shut
in models as narrow as the probes', and with a gate that starts open `gated-deltanet` solves MQAR
([LOG.md](../benchmarks/LOG.md)).
"""
SAYS = """## What it says

Of the data of 2026-11-30:

- At this size and length the loss is won by what mixes neighbours from the first step on: `hyena` 4.02 and `conv` 4.04,
  which are last but for `shift` and `mlp` in MQAR. A loss of so short a training is no measure of recall.
- Of the softmaxes with content a gate on the output or a decay helps: `gated-attention` 4.17, `forgetting` 4.18,
  `standard` 4.28; so does `mamba2` 4.17, which has a short convolution and a decay.
- Maps that depend on no content are not behind: `rndemb` 4.24 and `fixedseq` 4.26 overlap with `standard`; the
  probes, where they are at a third of its MQAR, tell them apart.
- What has neither position nor decay does not do better than no mixing at all (`mlp` 4.40): `nope`, `nonapproximate`,
  `linear`, `average` and `based` are at 4.47 to 4.61.
- `deltanet`, which recalls as well as attention (99.1 % in MQAR, all of selective copying), is behind `mlp` here with
  4.49.
"""


@dataclass(frozen=True)
class Arguments:
    """Write the table of all mixers."""

    names: bool = False
    """Print all mixers' names, and do nothing else."""
    probes: Path = ROOT / "benchmarks" / "probes" / "zoo"
    """Folder of a probe."""
    language: Path = ROOT / "benchmarks" / "reproduction" / "zoo"
    """Folder of a reproduction's report."""
    steps: Path = RESULTS / "zoo_steps-cpu.json"
    """Result of benchmarks/training/cpu.py."""
    growth: Path = RESULTS / "mixer_growth-cpu.json"
    """Result of benchmarks/training/growth.py."""
    out: Path = ROOT / "docs" / "zoo.md"


def main() -> None:
    arguments = parse(Arguments)
    if arguments.names:
        print(*known_names())
        return
    durable.write_text(arguments.out, page(arguments))
    print(f"written: {arguments.out}")


def page(arguments: Arguments) -> str:
    """Return the page."""
    findings = Findings(read_results(arguments.probes) if arguments.probes.is_dir() else [])
    language = _read(arguments.language / "data.json", {})
    losses = _losses(language)
    steps = _read(arguments.steps, {}).get("summary", {})
    growth = _read(arguments.growth, {}).get("seconds", {})
    config = model_config(size_defaults(SIZE).model, 50_304, LENGTH)
    probes = [findings.label(problem) for problem in findings.problems]
    groups: dict[str, list[str]] = {}
    for name in sorted(known_names(), key=lambda name: name != STANDARD):
        groups.setdefault(relaxed_by(name), []).append(name)
    rows = []
    for group, names in groups.items():
        for name in names:
            rows.append(
                [
                    name,
                    group,
                    *_facts(name, config),
                    _step(steps, name),
                    _growth(growth, name),
                    *_scores(findings, name),
                    losses.get(name, NOTHING),
                ]
            )
    heading = ["mixer", "relaxes", "order", "state", "parameters", "step", "growth", *probes, "loss"]
    introduction = INTRODUCTION.format(training=_training(language))
    return f"{introduction}\n{markdown_table('The table', [heading, *rows])}\n{SAYS}"


def _facts(name: str, config: ModelConfig) -> Iterator[str]:
    """Yield what a mixer is at the table's dimensions: order, state, parameters."""
    mixer = mixer_class(name)
    assert mixer.principles is not None
    yield "counts" if mixer.principles.position_dependent else "does not"
    half, whole = (mixer.decoding.cache_bytes(mixer, config, Workload(1, n, 2)) for n in (LENGTH // 2, LENGTH))
    yield "none" if not whole else f"{whole / 1024:,.0f} KiB{', grows' if whole > half else ''}"
    layer = attention_parameters(config) + 3 * config.hidden_size * config.intermediate_size
    yield f"{100 * (mixer.num_parameters(config) - attention_parameters(config)) / layer:+.2f} %"


def _step(steps: dict[str, Any], name: str) -> str:
    if name not in steps:
        return NOTHING
    return f"{steps[STANDARD]['cpu_ratio'] / steps[name]['cpu_ratio']:.2f}"


def _growth(seconds: dict[str, dict[str, float]], name: str) -> str:
    if name not in seconds:
        return NOTHING
    *_, half, whole = seconds[name].values()
    return f"{whole / half:.1f}"


def _scores(findings: Findings, name: str) -> Iterator[str]:
    """Yield the accuracy of each probe, at the first size."""
    for problem in findings.problems:
        found = findings.cell(problem, Kind(name, UNIFORM), findings.sizes[0]).interval()
        half = "" if found is None or found.half is None else f" \N{PLUS-MINUS SIGN} {100 * found.half:.1f}"
        yield NOTHING if found is None else f"{100 * found.mean:.1f}{half}"


def _training(data: dict[str, Any]) -> str:
    """Return in words how long the models of the losses were trained; nothing where there are none."""
    runs = [run["training"] for run in data.get("runs", {}).values() if run["training"]]
    if not runs:
        return ""
    [(steps, tokens)] = {(run["steps"], run["tokens"]) for run in runs}
    rates = ", ".join(data["sweeps"][0]["losses"])
    return f" of a tiny model on {tokens:,} tokens in {steps} steps, at the better of {rates}"


def _losses(data: dict[str, Any]) -> dict[str, str]:
    """Return the validation loss by mixer."""
    found = {}
    for row in data.get("tables", {}).get("1", {}).get("rows", []):
        cell = row["ours"].get(LOSS)
        if cell and cell["value"] is not None and row.get("pattern") == UNIFORM:
            half = f" \N{PLUS-MINUS SIGN} {(cell['high'] - cell['low']) / 2:.3f}" if cell.get("low") is not None else ""
            found[row["variant"]] = f"{cell['value']:.3f}{half}"
    return found


def _read(path: Path, otherwise: Any) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else otherwise


if __name__ == "__main__":
    run(main)
