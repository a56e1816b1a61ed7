"""Bars are drawn on a terminal, with the time left, and nowhere else."""

import os
import pty
import subprocess
import sys
from collections.abc import Sequence

import pytest

from deconattn.progress import progress_bar, unseen

DRAWN = """
import time
from deconattn.progress import progress_bar
with progress_bar("packing [all]", 4, "shards") as advance:
    for _ in range(4):
        advance(1)
        time.sleep(0.15)
print("done")
"""
LINES = """
from deconattn.train.metrics import Display
display = Display(2, 0)
display.step({"step": 2, "loss": 1.0, "grad_norm": 1.0, "learning_rate": 1e-3, "memory_gib": 1.0})
display.close()
"""
LIVE = """
import time
from deconattn.train.metrics import Display
display = Display(2, 0)
display.doing("writing the checkpoint")
time.sleep(0.3)
display.close()
"""
GGUF = """
import time
import transformers.modeling_gguf_pytorch_utils as reading
from deconattn.checkpoint.gguf_source import _our_bar
with _our_bar(4):
    for _ in reading.tqdm([1, 2, 3, 4], desc="de-quantizing"):
        time.sleep(0.15)
"""
HARNESS = """
import sys, time, types
from deconattn.evaluation import bars
module = types.ModuleType("lm_eval.api.task")
sys.modules["lm_eval.api.task"] = module
bars.draw({shown})
for _ in module.tqdm([1, 2, 3, 4], desc="building"):
    time.sleep(0.15)
bar = module.tqdm(total=2, desc="scoring", disable=False)
bar.update(2)
time.sleep(0.15)
bar.close()
"""


def on_a_terminal(program: str) -> str:
    """What a program draws on standard error where that is a terminal."""
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "100"}
    process = subprocess.Popen([sys.executable, "-c", program], stderr=theirs, stdout=subprocess.PIPE, env=environment)
    os.close(theirs)
    parts: list[bytes] = []
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        parts.append(part)
    os.close(ours)
    assert process.wait(60) == 0
    return b"".join(parts).decode()


def test_a_terminal_sees_how_far_it_is_and_the_time_left() -> None:
    drawn = on_a_terminal(DRAWN)
    assert "packing [all]" in drawn and "of 4 shards" in drawn and "0:00:0" in drawn


def test_elsewhere_nothing_is_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("packing", 4, "shards") as advance:
        assert advance is unseen
        advance(1)
    assert capsys.readouterr() == ("", "")


def test_a_log_has_lines_whatever_is_forced() -> None:
    """Notebooks force colours upon what they start."""
    environment = os.environ | {"FORCE_COLOR": "1", "TTY_COMPATIBLE": "1"}
    done = subprocess.run([sys.executable, "-c", LINES], env=environment, capture_output=True, text=True, check=True)
    assert done.stderr.startswith("step 2/2 ") and done.stderr.count("\n") == 1 and "\x1b" not in done.stderr


def test_training_tells_what_it_stands_still_for() -> None:
    assert "writing the checkpoint" in on_a_terminal(LIVE)


def test_transformers_reads_with_our_bar() -> None:
    drawn = on_a_terminal(GGUF)
    assert "4 of 4 tensors" in drawn and "de-quantizing" not in drawn


@pytest.mark.parametrize(("shown", "words"), [(True, ["building", "4 of 4 requests", "scoring"]), (False, [])])
def test_the_harness_draws_ours_or_none(shown: bool, words: Sequence[str]) -> None:
    drawn = on_a_terminal(HARNESS.format(shown=shown))
    assert [word for word in words if word not in drawn] == []
    assert shown or not drawn
