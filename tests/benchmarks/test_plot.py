"""`plots/plot.py`: what is read from results, drawn, and written into a README."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.plots import plot
from benchmarks.plots.data import MOVED, Point, decodings, operations, throughputs
from benchmarks.plots.section import BEGIN, END, performance_section, with_section
from deconattn.errors import UserError
from deconattn.mixers import variant_names
from tests.conftest import ROOT

ORIGIN = {
    "date": "2026-01-02",
    "command": "python benchmarks/x.py",
    "machine": {"cpu": "A CPU", "cores": 2},
    "versions": {"torch": "2.11.0", "numpy": "2.0"},
}
GPU = ORIGIN | {"machine": {"cpu": "A CPU", "cores": 16, "gpu": "NVIDIA H100"}}


def trained(rate: float, library: str = "deconattn") -> dict[str, Any]:
    return {"library": library, "tokens_per_second": rate, "ratio": rate / 100, "mfu": 0.4, "memory_gib": 9.0}


def timed(case: str, length: int, ratio: float) -> dict[str, Any]:
    ours = {"seconds": 1.0, "ratio": ratio}
    entries = {"ours": {"forward": ours, "training": ours}, "SDPA, flash": {"training": {"ratio": 1.0}}}
    row = {"kind": "time", "case": case, "precision": "bf16", "length": length, "contestants": entries}
    return row | {"training": {"baseline": "SDPA, flash"}}


def decoded(kind: str, batch: int, length: int, times: dict[str, float]) -> dict[str, Any]:
    """A case of `decoding/decode.py`."""
    rows = {name: {"ms_a_token": ms, "ratio": times["Qwen2"] / ms} for name, ms in times.items()}
    if kind == "step":
        for name, row in rows.items():
            held = 0 if name == "mlp" else batch * length * 2**20
            row |= {"cache_bytes": held, "fixed_bytes": 2**19 if "fixedseq" in name else 0}
    return {"kind": kind, "batch": batch, "length": length, "contestants": rows}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    folder.mkdir()
    sizes = {
        "500m": {
            "standard": trained(200),
            "fixedseq 1:1, eager": trained(300),
            "transformers": trained(100, "transformers"),
            "mlp": {"failure": "no"},
        },
        "70m": {"standard": {"failure": "no time left"}},
    }
    options = {"seq_len": 2048}
    step = GPU | {"options": options, "reference": "transformers", "summary": sizes}
    cpu_row = {"tokens_per_second": 5.0, "ratio": 1.0, "peak_gib": 2.0}
    cpu = {"size": "70m", "batch_size": 4, "seq_len": 512, "precision": "fp32"}
    train_cpu = ORIGIN | {"options": cpu, "peer": "Qwen2", "summary": {"Qwen2": cpu_row, "mlp": cpu_row}}
    rows = [timed("taylor", 512, 2.0), timed("taylor", 2048, 0.5), timed("prefix", 2048, 0.25)]
    rows += [timed("cross-entropy", 2048, 1.0), {"kind": "time", "case": "softmax", "skipped": "no time"}]
    rows += [{"kind": "ceilings"}]
    kernels = GPU | {"results": rows}
    cases = [
        decoded("step", 1, 64, {"Qwen2": 4, "mlp": 1, "fixedseq 1:1": 2}),
        decoded("step", 8, 64, {"Qwen2": 6, "mlp": 1, "fixedseq 1:1": 2}),
        decoded("step", 8, 128, {"Qwen2": 9, "mlp": 1, "fixedseq 1:1": 2}),
        decoded("overhead", 1, 1, {"Qwen2": 3, "mlp": 1, "fixedseq 1:1": 1.5}),
        decoded("generate", 1, 20, {"Qwen2": 4, "mlp": 2}),
    ]
    cases[2]["contestants"]["mlp"] = {"failure": "no"}
    cases[0]["contestants"]["rndemb"] = {"failure": "no"}
    options = {"size": "70m", "precision": "fp32", "device": "cpu"}
    decode = GPU | {"options": options, "peer": "Qwen2", "cases": cases}
    named = {"train_step-h100": step, "train_cpu-70m-fp32": train_cpu, "kernels-h100": kernels}
    for name, result in (named | {"decode-70m-fp32-cpu": decode}).items():
        (folder / f"{name}.json").write_text(json.dumps(result))
    return folder


def test_throughputs(results: Path):
    gpu, cpu = throughputs(results)
    assert (gpu.key, cpu.key) == ("train_step-h100-500m", "train_cpu-70m-fp32")
    assert [(bar.name, bar.variant) for bar in gpu.bars] == [
        ("fixedseq 1:1, eager", "fixedseq"),
        ("standard", "standard"),
        ("transformers", None),
    ]
    assert gpu.origin.device == "NVIDIA H100"
    assert cpu.origin.device == "A CPU, 2 cores"


def test_operations(results: Path):
    (found,) = operations(results)
    assert found.ratios["training"] == {"taylor": {512: 2.0, 2048: 0.5}, "prefix": {2048: 0.25}}
    assert found.lengths == [512, 2048]


def test_decodings(results: Path):
    (found,) = decodings(results)
    assert found.title == "70m on A CPU, 16 cores, fp32"  # the GPU was not what ran
    assert [(curve.name, curve.variant, curve.pattern) for curve in found.curves] == [
        ("Qwen2", None, "uniform"),
        ("mlp", "mlp", "uniform"),
        ("fixedseq 1:1", "fixedseq", "1:1"),
    ]
    assert (found.batches, found.lengths, found.patterns) == ([1, 8], [64, 128], ["uniform", "1:1"])
    assert [curve.name for curve in found.of_pattern("1:1")] == ["Qwen2", "fixedseq 1:1"]
    peer, mlp, hybrid = found.curves
    assert peer.points[8] == {64: Point(6, 1, 512 * 2**20), 128: Point(9, 1, 1024 * 2**20)}
    assert mlp.points == {1: {64: Point(1, 4)}, 8: {64: Point(1, 6)}}  # it failed at 128
    assert hybrid.points[8][128] == Point(2, 4.5, 1024 * 2**20, 2**19)
    assert (hybrid.overhead, hybrid.generate, mlp.generate) == (Point(1.5, 2), None, Point(2, 2))


def test_every_variant_has_a_colour():
    pytest.importorskip("matplotlib")
    from deconattn.pages.palette import COLOURS

    ours = {"standard", "mlp", "approximate", "nonapproximate", "rndemb", "fixedseq", "staticemb"}
    assert set(COLOURS) == ours <= set(variant_names())
    assert len(set(COLOURS.values())) == len(COLOURS)


@pytest.mark.slow
def test_pictures_are_the_same_every_time(results: Path, tmp_path: Path):
    pytest.importorskip("matplotlib")
    found = throughputs(results), decodings(results), operations(results)
    first, again = (plot.draw(*found, tmp_path / name) for name in ("first", "again"))
    assert [path.name for path in first] == [
        "train_step-h100-500m",
        "train_cpu-70m-fp32",
        "decode-70m-fp32-cpu-time",
        "decode-70m-fp32-cpu-cache",
        "kernels-h100-bf16",
    ]
    for one, other in zip(first, again, strict=True):
        assert one.with_suffix(".svg").read_bytes() == other.with_suffix(".svg").read_bytes()
        assert one.with_suffix(".png").is_file()
    training, _, times, cache, _ = (path.with_suffix(".svg").read_text() for path in first)
    assert "fixedseq 1:1" in training
    assert "1:1, 8 sequences" in times
    assert "uniform (mlp: none)" in cache


def test_section_of_a_readme(results: Path, tmp_path: Path):
    images = tmp_path / "docs" / "images"
    images.mkdir(parents=True)
    (images / "train_step-h100-500m.svg").touch()
    (images / "decode-70m-fp32-cpu-cache.svg").touch()
    section = performance_section(throughputs(results), decodings(results), operations(results), images, tmp_path)
    readme = with_section(f"before\n{BEGIN}\nold\n{END}\nafter", section)
    assert readme.startswith(f"before\n{BEGIN}\n\n**Training: 500m on NVIDIA H100")
    assert readme.endswith(f"{END}\nafter")
    assert "old" not in readme
    assert "![train_step-h100-500m](docs/images/train_step-h100-500m.svg)" in readme
    assert "| *transformers* | 100 | 1.00 | 40.0% | 9.0 |" in readme
    assert "![decode-70m-fp32-cpu-cache](docs/images/decode-70m-fp32-cpu-cache.svg)" in readme
    assert "![decode-70m-fp32-cpu-time]" not in readme
    assert "| contestant | 1 x 64 | 1 x 128 | 8 x 64 | 8 x 128 | MiB at 8 x 128 |" in readme
    assert "| *Qwen2* | 4.00 (1.00) |  | 6.00 (1.00) | 9.00 (1.00) | 1,024.0 | 4.00 (1.00) | 3.00 (1.00) |" in readme
    assert "| mlp | 1.00 (4.00) |  | 1.00 (6.00) |  |  | 2.00 (2.00) | 1.00 (3.00) |" in readme
    assert "| fixedseq 1:1 | 2.00 (2.00) |  | 2.00 (3.00) | 2.00 (4.50) | 1,024.0 + 0.5 |  | 1.50 (2.00) |" in readme
    assert "| taylor | 2.00 | 0.50 |" in readme
    assert "| prefix |  | 0.25 |" in readme
    assert "2026-01-02, NVIDIA H100, torch 2.11.0: `python benchmarks/x.py`" in readme
    assert "![train_cpu" not in readme  # not drawn
    assert with_section(readme, section) == readme


def test_commands_that_can_be_typed(results: Path):
    """A script that has moved since a result was made is shown where it is."""
    path = results / "train_cpu-70m-fp32.json"
    made = json.loads(path.read_text()) | {"command": "OMP_NUM_THREADS=2 python benchmarks/train_cpu.py --size 70m"}
    path.write_text(json.dumps(made))
    commands = {found.key: found.origin.command for found in throughputs(results)}
    assert commands["train_cpu-70m-fp32"] == "OMP_NUM_THREADS=2 python benchmarks/training/cpu.py --size 70m"
    assert all((ROOT / script).is_file() for script in MOVED.values())


def test_a_readme_without_markers():
    with pytest.raises(UserError, match="end of performance"):
        with_section("nothing here", "")
