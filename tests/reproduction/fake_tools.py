"""Stand-ins for launch.sh, evaluate.py and analyze.py, quick and the same every time: `fake_tools.py KIND ARGUMENTS`.

A training takes its steps slowly enough to be killed in, writes a checkpoint every other step, resumes from the newest,
and on SIGTERM writes one and exits 0, as launch.sh does. `FAKE_FAILS` names jobs, as RUN:KIND, that fail.
"""

import json
import os
import signal
import sys
import time
import zlib
from pathlib import Path

STEPS, TOKENS_A_STEP, SECONDS = 8, 1024, 0.02
TASKS = ("ARC-E", "BoolQ", "COPA", "PIQA", "SciQ", "RTE", "HellaSwag")
stopped = False


def number(*words: object) -> float:
    """From 0 to 1, by the words."""
    return zlib.crc32(" ".join(map(str, words)).encode()) / 2**32


def ask_to_stop(signum: int, frame: object) -> None:
    global stopped
    stopped = True


def write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(content))
    temporary.replace(path)


def train(run: Path, resume: bool) -> None:
    signal.signal(signal.SIGTERM, ask_to_stop)
    assert resume == (run / "config.json").is_file()
    run.mkdir(parents=True, exist_ok=True)
    with (run.parents[1] / "started").open("a") as journal:
        journal.write(f"{run.name}\n")
    saved = [int(folder.name.split("-")[1]) for folder in run.glob("checkpoints/step-*") if any(folder.iterdir())]
    first = max(saved, default=0)
    metrics = run / "metrics.jsonl"
    kept = metrics.read_text().splitlines(keepends=True) if metrics.exists() else []
    metrics.write_text("".join(row for row in kept if row.endswith("\n") and json.loads(row)["step"] <= first))
    write(
        run / "config.json", {"total_steps": STEPS, "environment": {"torch": "2", "device": "<b>", "world_size": "1"}}
    )
    with metrics.open("a") as file:
        for step in range(first + 1, STEPS + 1):
            time.sleep(SECONDS)
            row = {"step": step, "loss": 8 / step + number(run.name), "tokens": step * TOKENS_A_STEP}
            file.write(json.dumps(row | {"tokens_per_second": 1000.0, "memory_gib": 0.5}) + "\n")
            file.flush()
            if step == STEPS:
                file.write(json.dumps({"step": step, "val_loss": 1.5 + number(run.name)}) + "\n")
                file.flush()
            if step % 2 == 0 or stopped:
                write(run / "checkpoints" / f"step-{step}" / "checkpoint.json", {"step": step})
            if stopped:
                return


def evaluate(run: Path, out: Path, arguments: list[str]) -> None:
    assert (run / "checkpoints" / f"step-{STEPS}" / "checkpoint.json").is_file()
    assert not out.exists()
    time.sleep(SECONDS)
    skip = "--skip-variant-layers" in arguments
    scores = {task: 0.3 + number(run.name, task, skip) / 3 for task in TASKS}
    scores["Avg"] = sum(scores.values()) / len(scores)
    scores |= {f"{task} stderr": 0.01 for task in TASKS}
    perplexity = 40 + 100 * number(run.name) + 1e6 * skip
    scores |= {"Wiki ppl": perplexity, "LAMBADA ppl": 3 * perplexity, "LAMBADA ppl stderr": 2.5, "LAMBADA acc": 0.2}
    lengths = arguments[arguments.index("--context-lengths") + 1].split(",") if "--context-lengths" in arguments else []
    contexts = {length: perplexity + 1000 / int(length) for length in lengths}
    model = {"model": {"label": run.name, "device": "cpu"}, "context_perplexities": contexts, "scores": scores}
    chance = {"random guess": {"Avg": 0.399, "Wiki ppl": 3e5}, "majority": {"Avg": 0.45}}
    comparable = "--limit" not in arguments
    write(out / "results.json", {"comparable": comparable, "versions": {}, "models": [model], "chance": chance})


def analyze(run: Path, out: Path) -> None:
    names = ["entropy", "concentration", "head diversity", "sink", *(f"local focus {n}" for n in range(4))]
    rows = [(layer, "v", name, number(run.name, layer, name)) for layer in (1, 2) for name in names]
    write(out / "analysis.json", {})
    if "mlp-uniform" not in run.name:
        columns = zip(("layer", "variant", "indicator", "value"), zip(*rows, strict=True), strict=True)
        write(out / "indicators.json", dict(columns))


def main(kind: str, arguments: list[str]) -> None:
    if kind == "train":
        run = Path(arguments[arguments.index("--save") + 1])
    else:
        run = Path(arguments[0])
        out = Path(arguments[arguments.index("--out") + 1])
        kind = kind if kind == "analyze" else out.name
    if f"{run.name}:{kind}" in os.environ.get("FAKE_FAILS", "").split(","):
        sys.exit("Traceback: <script>alert('no such thing')</script> & more")
    if kind == "train":
        train(run, "--resume" in arguments)
    elif kind == "analyze":
        analyze(run, out)
    else:
        evaluate(run, out, arguments)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
