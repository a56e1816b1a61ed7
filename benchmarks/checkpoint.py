"""Checkpoints: how long training stands still for one, and how many bytes each rank writes and reads.

    OMP_NUM_THREADS=1 python benchmarks/checkpoint.py --before CHECKOUT

A model of 126M parameters trains one step on 1, 2 and 4 CPU ranks under ZeRO-1 and is saved: synchronously, in the
background, and by torch.distributed.checkpoint's `async_save` of the same slices (its own format: one file a rank, no
checksums, a pickle), the three taking turns in the same processes. "Stands still" is the time until the slowest rank
may go on, "on the disk" until the checkpoint can be read. Then new processes resume, and count what each rank reads,
to verify and to load. `--before` does the same, as far as there is something to do, in a checkout of a commit before
the slices (e516c13), where every rank gathered whole tensors, one wrote them, and all read them.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if os.environ.get("CHECKPOINT_BENCHMARK_TREE", str(ROOT)) == str(ROOT):
    sys.path.insert(0, str(ROOT))
else:
    sys.path.insert(0, os.environ["CHECKPOINT_BENCHMARK_TREE"])
    sys.path = [path for path in sys.path if path != str(Path(__file__).parent)]

RESULTS = ROOT / "benchmarks" / "results"
FLAGS = (
    "--size 160m --tie-embeddings --vocab-size 16384 --seq-len 64 --global-batch-size 4 --micro-batch-size 1 "
    "--steps 99 --eval-every 99 --save-every 99 --precision fp32 --zero 1"
).split()
MIB = 2**20


@dataclass(frozen=True)
class Arguments:
    """Save and resume on several ranks."""

    ranks: tuple[int, ...] = (1, 2, 4)
    rounds: int = 3
    """Saves of each kind."""
    flags: str = ""
    """More flags of the training."""
    before: Path | None = None
    """Checkout of a commit before the slices."""
    scratch: Path | None = None
    """Folder to write to; by default the system's temporary one."""
    name: str = "cpu"
    """Of the result: checkpoint-NAME.json and .md."""
    out: Path = RESULTS


def main() -> None:
    """Measure, print, write."""
    from deconattn.cli import parse
    from deconattn.data import pack_demo

    arguments = parse(Arguments)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="checkpoint-benchmark-", dir=arguments.scratch) as name:
        pack_demo(Path(name) / "data")
        for world in arguments.ranks:
            for tree in filter(None, (arguments.before, ROOT)):
                run = Path(name) / "run"
                found = measure(arguments, tree.resolve(), world, run, Path(name) / "data")
                rows += [{"ranks": world} | row for row in found]
                print(json.dumps(rows[-len(found) :]), file=sys.stderr, flush=True)
                shutil.rmtree(run, ignore_errors=True)
                write(arguments, rows)  # what there is, if the rest should fail
    print(write(arguments, rows))


def write(arguments: Arguments, rows: list[dict[str, Any]]) -> str:
    """Write the result and its table; the table."""
    from benchmarks.machine import command, describe, markdown_table, write_result
    from deconattn.durable import write_text

    columns = [
        "ranks",
        "how",
        "stands still, s",
        "on the disk, s",
        "MiB written a rank",
        "MiB read a rank",
        "resume, s",
    ]
    cells = [
        [
            str(row["ranks"]),
            row["how"],
            f"{row['still_s']:.2f}",
            f"{row['disk_s']:.2f}",
            ", ".join(f"{value / MIB:.0f}" for value in row["written"]),
            ", ".join(f"{value / MIB:.0f}" for value in row["read"]) or "-",
            f"{row['resume_s']:.1f}" if row["resume_s"] else "-",
        ]
        for row in rows
    ]
    report = f"# Checkpoints of 126M parameters\n\n{describe()}. `{command()}`\n\n{markdown_table(columns, cells)}"
    options = {name: str(value) for name, value in asdict(arguments).items() if name not in ("out", "scratch")}
    path = arguments.out / f"checkpoint-{arguments.name}.json"
    write_result(path, {"options": options, "rows": rows})
    write_text(path.with_suffix(".md"), report + "\n")
    return report


def measure(arguments: Arguments, tree: Path, world: int, run: Path, data: Path) -> list[dict[str, Any]]:
    """The rows of one code at one number of ranks."""
    words = ["--data", str(data), *FLAGS, *arguments.flags.split(), "--save", str(run)]
    saves = started(tree, world, ["save", str(arguments.rounds), *words])
    resumed = started(tree, world, ["resume", "1", "--save", str(run), "--resume"])
    found = []
    for how in saves[0]["saves"]:
        of_ranks = [result["saves"][how] for result in saves]
        last = how in ("gathered", "async")
        found.append(
            {
                "how": how,
                "still_s": statistics.median(map(max, zip(*[entry["still_s"] for entry in of_ranks], strict=True))),
                "disk_s": statistics.median(map(max, zip(*[entry["disk_s"] for entry in of_ranks], strict=True))),
                "written": [entry["written"] for entry in of_ranks],
                "read": [result["read"] for result in resumed] if last else [],
                "resume_s": max(result["seconds"] for result in resumed) if last else None,
                "samples": of_ranks,
            }
        )
    return found


def started(tree: Path, world: int, words: list[str]) -> list[dict[str, Any]]:
    """Start the ranks of a job; what each of them found, in order."""
    from deconattn.launch.ranks import free_port

    place = {"WORLD_SIZE": str(world), "LOCAL_SIZE": str(world), "MASTER_ADDR": "127.0.0.1"}
    place |= {"MASTER_PORT": str(free_port()), "CHECKPOINT_BENCHMARK_TREE": str(tree), "TORCHDYNAMO_DISABLE": "1"}
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), "rank", *words],
            env={**kept, **place, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    outputs = [process.communicate()[0] for process in ranks]
    if any(process.returncode for process in ranks):
        raise SystemExit(f"a rank failed: {words}")
    return [json.loads(output.splitlines()[-1]) for output in outputs]


class Never:
    """A wish to stop that nobody has."""

    launcher_lost = False

    def __bool__(self) -> bool:
        return False


def rank(words: list[str]) -> None:
    """One rank: print what it found as its last line."""
    from deconattn.config.command_line import parse_training_flags
    from deconattn.parallel import process_group

    process_group.start_distributed()
    from deconattn.train import trainer as module

    counted: list[Any] = []
    load = module.load_checkpoint

    def counting(engine: Any, checkpoint: Any) -> None:
        counted.append(checkpoint)
        load(engine, checkpoint)

    module.load_checkpoint = counting
    begun = time.perf_counter()
    trainer = module.Trainer(parse_training_flags(words[2:]), Never())
    seconds = time.perf_counter() - begun
    if words[0] == "save":
        print(json.dumps({"saves": saves(trainer, int(words[1]))}))
    else:
        print(json.dumps({"seconds": seconds, "read": bytes_read(counted[0])}))


def bytes_read(checkpoint: Any) -> int:
    """Bytes that this rank has read of a checkpoint."""
    import torch.distributed as dist

    if hasattr(checkpoint, "reader"):
        return int(checkpoint.reader.bytes_read)
    # Before the slices: all verified by rank 0; weights read before and after the engine was made, moments after.
    kinds = {kind: sum(path.stat().st_size for path in checkpoint._files(kind)) for kind in ("weights", "exp_avg")}
    whole = kinds["weights"] + 2 * kinds["exp_avg"]
    return kinds["weights"] + whole + (whole if dist.get_rank() == 0 else 0)


def saves(trainer: Any, rounds: int) -> dict[str, dict[str, Any]]:
    """Save in each way, in turns; seconds and bytes."""
    from deconattn.train import saving

    trainer._batches = trainer.data.loader(0, trainer.topology.dp_rank, trainer.topology.dp_size, False)
    batches = trainer._batches.take(trainer.engine.accumulation_steps)
    trainer.engine.train_step(batches, 1e-4)
    trainer._batches.close()
    ways = {"gathered": gathered} if not hasattr(saving, "Saver") else {"dcp": dcp, "sync": sync, "async": background}
    found: dict[str, dict[str, Any]] = {way: {"still_s": [], "disk_s": []} for way in ways}
    kept: dict[str, Any] = {}
    for step in range(rounds):
        for way, save in ways.items():
            trainer.engine.barrier()
            still, disk, written = save(trainer, 10 * step + list(ways).index(way) + 1, kept)
            found[way]["still_s"].append(still)
            found[way]["disk_s"].append(disk)
            found[way]["written"] = written
    return found


def gathered(trainer: Any, step: int, kept: dict[str, Any]) -> tuple[float, float, int]:
    from deconattn.checkpoint.manifest import Progress
    from deconattn.train import saving

    save_checkpoint = vars(saving)["save_checkpoint"]  # of the earlier commit
    begun = time.perf_counter()
    tokenizer = trainer.data.write_tokenizer
    folder = save_checkpoint(trainer.engine, trainer.run_folder, Progress(step), trainer.config, tokenizer, 1)
    taken = time.perf_counter() - begun
    owns = trainer.topology.owns_stage
    return taken, taken, sum(path.stat().st_size for path in folder.glob("*.safetensors")) if owns else 0


def sync(trainer: Any, step: int, kept: dict[str, Any]) -> tuple[float, float, int]:
    return _saved(trainer, step, kept, "sync")


def background(trainer: Any, step: int, kept: dict[str, Any]) -> tuple[float, float, int]:
    return _saved(trainer, step, kept, "async")


def _saved(trainer: Any, step: int, kept: dict[str, Any], mode: str) -> tuple[float, float, int]:
    import torch.distributed as dist

    from deconattn.checkpoint.manifest import Progress
    from deconattn.checkpoint.slice_file import NAME
    from deconattn.train.saving import Saver

    if mode not in kept:
        arguments = trainer.engine, trainer.run_folder, trainer.config, trainer.data.write_tokenizer, 1
        kept[mode] = Saver(*arguments, background=mode == "async")
    begun = time.perf_counter()
    folder = kept[mode].begin(Progress(step))
    still = time.perf_counter() - begun
    if (failed := kept[mode].wait()) is not None:
        raise SystemExit(failed.reason)
    disk = time.perf_counter() - begun
    written = (folder / NAME.format(dist.get_rank())).stat().st_size
    return disk if mode == "sync" else still, disk, written


def dcp(trainer: Any, step: int, kept: dict[str, Any]) -> tuple[float, float, int]:
    import torch.distributed as dist
    import torch.distributed.checkpoint as torch_dcp

    from deconattn.train.saving import own_slices

    if "group" not in kept:
        kept["group"] = dist.new_group(backend="gloo")
    rank, folder = dist.get_rank(), trainer.run_folder / "dcp"
    if rank == 0:
        shutil.rmtree(folder, ignore_errors=True)
    trainer.engine.barrier()
    begun = time.perf_counter()
    # A key of its own for each slice: DCP has no flat partitions of a tensor.
    state = {
        f"{rank}/{kind}/{piece.name}": value
        for piece in own_slices(trainer.engine)
        for kind, value in piece.values.items()
    }
    writer = torch_dcp.FileSystemWriter(folder, sync_files=True)
    future: Any = torch_dcp.async_save(state, storage_writer=writer, process_group=kept["group"])
    still = time.perf_counter() - begun
    future.result()
    disk = time.perf_counter() - begun
    written = sum(path.stat().st_size for path in folder.glob(f"__{rank}_*"))
    trainer.engine.barrier()
    return still, disk, written


if __name__ == "__main__":
    if sys.argv[1:2] == ["rank"]:
        rank(sys.argv[2:])
    else:
        from deconattn.cli import run

        run(main)
