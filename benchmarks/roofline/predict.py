"""Prediction of every variant's training step on GPUs that are not at hand, before and after a change.

    python benchmarks/roofline/predict.py --before FOLDER    # a checkout of what is to be compared with

Needs a CUDA build of PyTorch and no GPU: the step runs on the null GPU (tests/nullgpu), with two and with three layers
at full width; deeper models have more of the same. What is not traced anew stays in the result as it was.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.machine import RESULTS, ROOT, write_result
from benchmarks.roofline.prediction import MODES, Works, as_objects, counted, deepened, predict, works_of
from benchmarks.roofline.report import markdown
from deconattn.cli import parse, run
from deconattn.config.command_line import parse_training_flags
from deconattn.config.flags import model_config
from deconattn.config.presets import SIZES
from deconattn.cost.cards import CARDS
from deconattn.errors import UserError
from deconattn.mixers import variant_names
from deconattn.model.flops import training_flops
from tests.nullgpu.build import build, missing

DEPTHS = (2, 3)


@dataclass(frozen=True)
class Arguments:
    """Predict training steps on GPUs that are not at hand."""

    before: Path | None = None
    """Checkout of an earlier commit, to be predicted as well."""
    sizes: tuple[str, ...] = ("500m", "1.7b", "70m")
    """Presets of dimensions."""
    variants: tuple[str, ...] = ()
    """Variants; none is every one of ours."""
    modes: tuple[str, ...] = MODES
    """With `--compile`, and without."""
    after: bool = True
    """Predict this checkout; `--no-after` where only --before is to be made."""
    micro_batch_size: int = 8
    """Sequences."""
    seq_len: int = 2048
    """Tokens in a sequence."""
    vocab_size: int = 50304
    """Rows of the embedding."""
    micro_batches: int = 8
    """In a step; two at least."""
    out: Path = RESULTS
    """Folder of roofline.json and roofline.md."""

    def words(self, size: str, variant: str, mode: str, depth: int) -> list[str]:
        """The training's command line, of three micro-batches."""
        words = (
            f"--size {size} --variant {variant} --seq-len {self.seq_len} --precision bf16 --num-hidden-layers {depth}"
        )
        words += f" --micro-batch-size {self.micro_batch_size} --global-batch-size {3 * self.micro_batch_size}"
        return words.split() + (["--compile"] if mode == "compiled" else [])


def main() -> None:
    """Trace, predict, write after every training."""
    arguments = parse(Arguments)
    if reason := missing():
        raise UserError(f"there can be no null GPU here: {reason}; run this with a CUDA build of PyTorch")
    sides = ({"before": arguments.before} if arguments.before else {}) | ({"after": ROOT} if arguments.after else {})
    path = arguments.out / "roofline.json"
    options = {"seq_len": arguments.seq_len, "micro_batch_size": arguments.micro_batch_size}
    options |= {"vocab_size": arguments.vocab_size, "micro_batches": arguments.micro_batches}
    kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    rows = kept.get("results", []) if kept.get("options") == options else []
    with tempfile.TemporaryDirectory() as folder:
        environment = build(Path(folder) / "gpu")
        for size in arguments.sizes:
            for side, tree in sides.items():
                for row in predicted(arguments, side, tree, size, environment, Path(folder)):
                    same = ("side", "size", "variant", "mode")
                    rows = [one for one in rows if any(one[key] != row[key] for key in same)] + [row]
                    rows.sort(key=_order)
                    write_result(path, {"options": options, "results": rows})
    text = markdown(rows, options)
    (arguments.out / "roofline.md").write_text(text, encoding="utf-8")
    print(text)


def predicted(
    arguments: Arguments, side: str, tree: Path, size: str, environment: dict[str, str], folder: Path
) -> Iterator[dict[str, Any]]:
    """Yield a row for each variant and mode of a size, as a checkout's code trains it."""
    variants = arguments.variants or tuple(variant_names())
    cases = [(variant, mode) for variant in variants for mode in arguments.modes]
    orders = [
        {
            "words": arguments.words(size, variant, mode, depth),
            "vocabulary": arguments.vocab_size,
            "micro_batches": arguments.micro_batches,
            "reset": depth == DEPTHS[0],
        }
        for variant, mode in cases
        for depth in DEPTHS
    ]
    answers = traced(orders, tree, environment, folder)
    for variant, mode in cases:
        shallow, deep = next(answers), next(answers)
        if isinstance(shallow, str) or isinstance(deep, str):
            told = shallow if isinstance(shallow, str) else deep
            print(f"warning: {side}, {size}, {variant}, {mode} is left out: {told}", file=sys.stderr)
            continue
        yield row_of(arguments, side, size, variant, mode, deepened(shallow, deep, SIZES[size].num_hidden_layers))
    next(answers, None)  # its process has ended, and well


def row_of(arguments: Arguments, side: str, size: str, variant: str, mode: str, works: Works) -> dict[str, Any]:
    """Return a result: what was counted by parts, and what every card is predicted to need."""
    flags = parse_training_flags(arguments.words(size, variant, mode, SIZES[size].num_hidden_layers))
    config = model_config(flags.model, arguments.vocab_size, arguments.seq_len)
    asked = training_flops(config, arguments.micro_batches * arguments.micro_batch_size, arguments.seq_len)
    seen = sum(work.flops * count for work, count in works.items())
    if seen < 0.97 * asked:
        told = f"{seen / asked:.0%} of the formula's FLOPs were seen: some operation has no formula in works.py"
        print(f"warning: {side}, {size}, {variant}, {mode}: {told}", file=sys.stderr)
    cards = {name: predict(works, card, asked, mode == "compiled") for name, card in CARDS.items()}
    return {
        "side": side,
        "size": size,
        "variant": variant,
        "mode": mode,
        "model_tflops": asked / 1e12,
        "counted": as_objects(counted(works, arguments.micro_batches)),
        "predicted": as_objects(cards),
    }


def traced(
    orders: list[dict[str, Any]], tree: Path, environment: dict[str, str], folder: Path
) -> Iterator[Works | str]:
    """Yield the works of each order, or what it failed with, by a process with the package of the checkout `tree`."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        here = Path(place)
        for name, where in (("deconattn", tree), ("benchmarks", ROOT), ("tests", ROOT)):
            (here / name).symlink_to((where / name).resolve())
        order, answer = here / "orders.json", here / "answer.json"
        order.write_text(json.dumps(orders), encoding="utf-8")
        forgotten = ("TRITON_INTERPRET", "RANK", "WORLD_SIZE")
        variables = {name: value for name, value in environment.items() if name not in forgotten}
        variables |= {
            "PYTHONPATH": str(here),
            "TORCHINDUCTOR_CACHE_DIR": str(here / "inductor"),
            "TORCHINDUCTOR_COMPILE_THREADS": "1",  # in this process, where nothing is compiled further
            "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1",
        }
        command = [sys.executable, "-m", "benchmarks.roofline.trace", str(answer), str(order)]
        with (here / "errors").open("w") as errors:
            process = subprocess.Popen(
                command, cwd=here, env=variables, stdout=subprocess.PIPE, stderr=errors, text=True, bufsize=1
            )
            assert process.stdout is not None
            done = 0
            try:
                for line in process.stdout:
                    if line.startswith("traced "):
                        rows = json.loads(answer.read_text(encoding="utf-8"))
                        print(f"{os.path.basename(tree)}: {line.strip()}", file=sys.stderr, flush=True)
                        yield rows[done] if isinstance(rows[done], str) else works_of(rows[done])
                        done += 1
            finally:
                if done < len(orders):  # it has failed, or nobody wants the rest
                    process.kill()
                failed = process.wait()
        if failed:
            told = (here / "errors").read_text(errors="replace")[-3000:]
            raise UserError(f"the null GPU's trainings ended with {failed}:\n{told}")


def _order(row: dict[str, Any]) -> tuple[int, str, str, str]:
    return list(SIZES).index(row["size"]), row["variant"], row["mode"], "ab"[row["side"] == "after"]


if __name__ == "__main__":
    run(main)
