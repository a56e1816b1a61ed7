"""Variants beside each other in some minutes: trainings, a probe and maps by our own commands, and one page of all."""

import os
import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from markupsafe import Markup
from rich.progress import Progress

from deconattn import durable
from deconattn.config.run_config import RUN_CONFIG
from deconattn.errors import UserError
from deconattn.generation.sampling import Sampling
from deconattn.json_files import read_json
from deconattn.locks import LOCK, hold_lock, lock_holder
from deconattn.metric_rows import METRICS
from deconattn.pages.frame import Picture, render
from deconattn.probing.findings import Findings
from deconattn.probing.page import lede
from deconattn.probing.pictures import problem_pictures
from deconattn.probing.results import read_results
from deconattn.program import command, process, quoted
from deconattn.runs.comparison import compare
from deconattn.runs.curves import panels_of_groups
from deconattn.runs.pages import pictures_of
from deconattn.runs.run import read_run, read_runs
from deconattn.runs.texts import continuation

PAGE, PLAN = "index.html", "demo.json"
PROMPT = "ROMEO:"
MAP_LAYER = 2
"""The layer whose maps are shown, counted from 1: the first one reads tokens that nothing has mixed yet."""
PROBES = ("mqar", "induction")
PROBE_FLAGS = ("--seeds", "1", "--lr", "0.003", "--steps", "400")


@dataclass(frozen=True)
class Demo:
    """What is shown, and where.

    Attributes:
        steps: of each training, on the bundled corpus.
        jobs: trainings at a time, each with its share of the cores.
    """

    variants: Sequence[str]
    out: Path
    steps: int
    jobs: int
    children: "set[subprocess.Popen[bytes]]" = field(default_factory=set)

    def folder(self, variant: str) -> Path:
        return self.out / "runs" / variant


def make(demo: Demo) -> Path:
    """Do what is not done yet, and write the page; returns its path.

    Raises:
        UserError: the folder is another demo's or in use, or a command failed, whose log is named.
    """
    demo.out.mkdir(parents=True, exist_ok=True)
    with hold_lock(demo.out / LOCK) as held:
        if held is None:
            raise UserError(
                f"{demo.out} is in use by {lock_holder(demo.out / LOCK)}: wait for it, or give another --out"
            )
        _check_same(demo)
        (demo.out / "logs").mkdir(exist_ok=True)
        with Progress(transient=True) as progress:
            _work(demo, progress)
    return demo.out / PAGE


def _check_same(demo: Demo) -> None:
    wanted = {"variants": list(demo.variants), "steps": demo.steps}
    path = demo.out / PLAN
    if not path.exists():
        if others := [entry.name for entry in demo.out.iterdir() if entry.name != LOCK]:
            raise UserError(f"{demo.out} holds {others[0]} and no demo: give another --out")
        durable.write_json(path, wanted)
    elif (there := read_json(path)) != wanted:
        raise UserError(f"{demo.out} is the demo of {there}: give its flags, or another --out")


def _work(demo: Demo, progress: Progress) -> None:
    task = progress.add_task("trainings", total=len(demo.variants) * demo.steps)
    with ThreadPoolExecutor(demo.jobs) as pool:
        trainings = [pool.submit(_train, demo, variant) for variant in demo.variants]
        try:
            while not all(training.done() for training in trainings):
                progress.update(task, completed=sum(_steps(demo.folder(variant)) for variant in demo.variants))
                time.sleep(0.5)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in list(demo.children):
                child.terminate()  # a training saves its last step first
            raise
    for training in trainings:
        training.result()
    progress.update(task, total=None, description="probes")
    words = ["--tasks", *PROBES, "--variants", *demo.variants, *PROBE_FLAGS, "--out", str(demo.out / "probes")]
    _run(demo, "probe", words)
    progress.update(task, description="maps")
    maps = demo.out / "maps"
    if not maps.exists():  # it appears when all is in it
        folders = [str(demo.folder(variant)) for variant in demo.variants]
        _run(demo, "analyze", [*folders, "--out", str(maps), "--maps", str(MAP_LAYER)])
    progress.update(task, description="texts")
    durable.write_text(demo.out / PAGE, page(demo))


def _train(demo: Demo, variant: str) -> None:
    folder = demo.folder(variant)
    if _steps(folder) == demo.steps:
        return
    words = ["--variant", variant, "--steps", str(demo.steps), "--save", str(folder)]
    if (folder / RUN_CONFIG).is_file():
        words = ["--save", str(folder), "--resume"]
    _run(demo, "train", words, variant)
    if (done := _steps(folder)) != demo.steps:
        raise UserError(f"the training of {variant} was stopped at step {done} of {demo.steps}: try again to go on")


def _steps(folder: Path) -> int:
    """Steps that a run has rows of."""
    rows = read_run(folder).steps if (folder / METRICS).is_file() else ()
    return int(rows[-1]["step"]) if rows else 0


def _run(demo: Demo, name: str, words: Sequence[str], of: str = "") -> None:
    """Run one of our commands, its output in a log."""
    cores = len(os.sched_getaffinity(0))
    threads = max(1, cores // demo.jobs) if of else cores
    environment = {"OMP_NUM_THREADS": str(threads)} | os.environ
    log = demo.out / "logs" / f"{'-'.join(filter(None, (name, of)))}.log"
    call = [*process(name), *words]
    with (
        log.open("wb") as file,
        # A session of its own: Ctrl-C is for us, and passed on once.
        subprocess.Popen(call, stdout=file, stderr=subprocess.STDOUT, env=environment, start_new_session=True) as child,
    ):
        demo.children.add(child)
        try:
            code = child.wait()
        except BaseException:
            child.terminate()
            raise
        finally:
            demo.children.discard(child)
    if code:
        raise UserError(f"{name} {of}".strip() + f" ended with exit code {code}: see {log}, then try again")


def page(demo: Demo) -> str:
    """The page of a demo whose parts are all there."""
    comparison = compare(read_runs([demo.folder(variant) for variant in demo.variants]))
    sampling = Sampling(max_new_tokens=80, temperature=0.8, seed=1)
    texts = {run.name: PROMPT + continuation(run, PROMPT, sampling, (), False) for run, _ in comparison.runs}
    findings = Findings(read_results(demo.out / "probes"))
    probes = [picture for problem in findings.problems for picture in problem_pictures(findings, problem)]
    return render(
        "deconattn.reproduction",
        "demo.html.j2",
        title=f"{len(demo.variants)} ways to mix tokens",
        lede=(
            f"Models of equal size, each trained on {demo.steps} steps of the same text. One seed each: what differs "
            "a little here may differ the other way with another."
        ),
        compared=comparison,
        curves=pictures_of(panels_of_groups(comparison.groups, ["loss"], "step")),
        probes=probes,
        probed=lede(findings),
        maps=_maps(demo),
        texts=texts,
        commands=_commands(demo),
    )


def _maps(demo: Demo) -> list[Picture]:
    found = []
    for variant in demo.variants:
        drawn = demo.out / "maps" / f"map-{variant}-layer-{MAP_LAYER}.svg"
        caption = f"{variant}, layer {MAP_LAYER}: the weight of each earlier token, a square a head."
        if drawn.is_file():
            svg = drawn.read_text(encoding="utf-8")
            found.append(Picture(Markup(svg[svg.index("<svg") :]), caption, []))
        else:
            found.append(Picture(Markup(""), f"{variant}, layer {MAP_LAYER}: no map, it mixes no tokens.", []))
    return found


def _commands(demo: Demo) -> list[tuple[str, str]]:
    """What to try next, and what it does."""
    first, last = demo.folder(demo.variants[0]), demo.folder(demo.variants[-1])
    return [
        (f'{command("generate")} {quoted(last)} --prompt "{PROMPT}"', "another text"),
        (f"{command('train')} --variant {demo.variants[-1]} --pattern 1:1 --save hybrid", "every other layer standard"),
        (f"{command('compare')} {quoted(first)} hybrid --out compared.html", "beside the first"),
        (f"{command('probe')} --variants {' '.join(demo.variants)} --out probes", "more tasks, with intervals"),
    ]
