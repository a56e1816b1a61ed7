"""Sweeps of the planner, as a table and as a picture."""

from dataclasses import replace
from pathlib import Path

from deconattn.analysis.sweep_picture import draw_sweep
from deconattn.config.flag_groups import EngineFlags
from deconattn.config.flags import model_config
from deconattn.config.presets import size_defaults
from deconattn.cost.cluster import Cluster
from deconattn.cost.sweep import row, swept


def test_the_batch_keeps_its_tokens_and_what_does_not_fit_says_so(tmp_path: Path):
    flags = replace(size_defaults("70m"), engine=EngineFlags(precision="bf16"))
    cells = swept(
        flags,
        lambda length: model_config(flags.model, 50277, length),
        (8, 7),
        (2048, 8192),
        80,
        Cluster.of("h100", 8, None, 5),
    )
    assert [(cell.length, cell.gpus, cell.batch) for cell in cells] == [
        (2048, 8, 256), (2048, 7, 256), (8192, 8, 64), (8192, 7, 64)
    ]  # fmt: skip
    assert cells[0].best is not None and cells[0].best.command in row(cells[0])
    assert cells[1].best is None and "multiple of 7" in row(cells[1])[3]
    for name in ("a.svg", "a.png"):
        draw_sweep(cells, tmp_path / name)
        assert (tmp_path / name).stat().st_size > 1000
