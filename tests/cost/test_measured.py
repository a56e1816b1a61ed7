"""Predicted peak memory against that of a real process; benchmarks/training/memory.py does so for more topologies."""

from pathlib import Path

import pytest

from benchmarks.training.memory import TOLERANCE, Arguments, compare


@pytest.mark.slow
def test_the_prediction_is_near_what_is_measured(tmp_path: Path):
    arguments = Arguments(size="tiny", variant="fixedseq", pattern="1:1", seq_len=512, micro_batch_size=4, steps=1)
    found = compare(arguments, "1 rank", "fp32", 0, tmp_path)
    assert "failure" not in found, found
    assert found["ratio"] == pytest.approx(1, abs=TOLERANCE)
