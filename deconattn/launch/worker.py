"""One rank's way in: the Python half of `launch.sh`, and by itself what `deconattn train` starts."""

import os
import signal
import sys
from collections.abc import Sequence
from datetime import timedelta
from types import FrameType
from typing import TYPE_CHECKING

import psutil

from deconattn.cli import handled, safe_output, say_error
from deconattn.config.command_line import parse_training_flags
from deconattn.errors import UserError
from deconattn.launch import limits, ranks
from deconattn.launch.siblings import siblings
from deconattn.launch.start import model_of_start
from deconattn.program import command, plugin_flag, quoted

if TYPE_CHECKING:
    from deconattn.config.flags import TrainingFlags
    from deconattn.launch.faults import Watch
    from deconattn.launch.meeting import Meeting

LAUNCHER = "deepspeed.launcher.launch"
OUR_LAUNCHER = "DECONATTN_LAUNCHER"
"""Variable by which our launcher tells its ranks, where they are on its machine, which process it is."""


class StopRequest:
    """Turns signals into a flag that the loop reads between steps.

    Launchers are up to three processes deep, and whoever ends one of them, by a signal to DeepSpeed's outer one or by
    kill -9, says no word to the ranks. They would train on as orphans, so a change of a launcher's parent stops them
    too. :meth:`ask` is the signals' handler.

    Attributes:
        launcher_lost: that is why they stop, and nobody asked.
    """

    def __init__(self) -> None:
        self._asked = self.launcher_lost = False
        self._parents: list[tuple[psutil.Process, int]] = []
        inner = psutil.Process(os.getppid())
        if LAUNCHER in inner.cmdline() and (outer := inner.parent()) is not None:
            self._parents = [(psutil.Process(), inner.pid), (inner, outer.pid)]
            if str(outer.ppid()) == os.environ.get(OUR_LAUNCHER):
                self._parents.append((outer, outer.ppid()))

    def __bool__(self) -> bool:
        if not self._asked and not self.launcher_lost:
            self.launcher_lost = self._orphaned()
        return self._asked or self.launcher_lost

    def ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True

    def _orphaned(self) -> bool:
        try:
            return any(child.ppid() != parent for child, parent in self._parents)
        except psutil.Error:
            return True


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, and exit 0; exit 2 with one line on standard error where the user can mend the cause, else 1.

    A run that stopped, its checkpoint written, because its launcher was gone exits 1 too.

    Args:
        arguments: the flags; by default the process's.
    """
    stop = StopRequest()
    with safe_output(), handled(stop.ask, signal.SIGTERM, signal.SIGINT):
        _train(arguments, stop)


def _train(arguments: Sequence[str] | None, stop: StopRequest) -> None:
    given = sys.argv[1:] if arguments is None else arguments
    given = [argument for argument in given if not argument.startswith("--local_rank")]
    try:
        ranks.join(os.environ)
        ranks.check(os.environ)
        beside = siblings() if ranks.world_size() > 1 else {}
        # Alone, and perhaps with --help, it waits for no import; others may be waiting for this rank.
        flags = _flags(given) if ranks.world_size() == 1 else None
    except UserError as error:
        say_error(error)
        sys.exit(2)

    from deconattn.launch.meeting import Meeting

    meeting = Meeting(beside)
    try:
        ranks.check_device(os.environ)
        flags = flags or _flags(given)
        limits.say_if_too_low(ranks.world_size(), ranks.rank())
        watch = _met(meeting, timedelta(minutes=flags.engine.distributed_timeout_minutes))
    except Exception as error:
        meeting.end(error)
    meeting.close()

    import torch.distributed

    try:
        from deconattn.evaluation.in_loop import scorer
        from deconattn.launch.flight_recorder import FlightRecorder, last_collective
        from deconattn.launch.peers import check_alike
        from deconattn.launch.preflight import check_on_rank_0
        from deconattn.train.trainer import Trainer

        check_alike(flags, watch.peers)
        manifests = check_on_rank_0(flags)
        trainer = Trainer(flags, stop, scorer(flags.evaluation), manifests)
        resume = f"{command('train')} --save {quoted(trainer.run_folder)} --resume{plugin_flag(flags.model.plugin)}"
        recorder = FlightRecorder(trainer.run_folder, trainer.progress.step, ranks.rank(), os.environ)
        watch.record, watch.doing = recorder.write, last_collective
        watch.situation = lambda: f", after step {trainer.progress.step}{recorder.told()}; to go on: {resume}"
        trainer.run()
        watch.leave()
    except Exception as error:
        watch.end(error)
    torch.distributed.destroy_process_group()
    if trainer.launcher_lost:
        sys.exit(1)
    if ranks.rank() == 0 and trainer.progress.step == flags.total_steps:
        from deconattn.launch.farewell import bid_farewell

        bid_farewell(flags, trainer.run_folder)


def _flags(given: Sequence[str]) -> "TrainingFlags":
    flags = parse_training_flags(given, model_of_start)
    if flags.run.max_restarts:
        raise UserError(
            "--max-restarts needs our own launcher, which did not start this rank: use "
            f"{command('train')} without deepspeed, torchrun, srun or mpirun, or leave the flag out"
        )
    return flags


def _met(meeting: "Meeting", timeout: timedelta) -> "Watch":
    """Join the process group with all ranks, and watch over them from then on."""
    from deconattn.launch.faults import Watch
    from deconattn.launch.flight_recorder import record_collectives
    from deconattn.launch.once import Once
    from deconattn.launch.peers import introduce
    from deconattn.parallel import process_group

    record_collectives(os.environ)
    try:
        process_group.start_distributed(timeout, meeting.wait)
        Once().install()
        return Watch(introduce())
    except RuntimeError as error:
        place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        reason = next(iter(str(error).splitlines()), "")
        line = f"rank {ranks.rank()} did not meet the other ranks at {place}: {reason}"
        meeting.give_up(f"error: {line}", line, 1)


if __name__ == "__main__":
    main()
