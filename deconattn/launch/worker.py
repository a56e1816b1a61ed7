"""One rank's way in: the Python half of `launch.sh`, and by itself what `deconattn train` starts."""

import os
import signal
import sys
from collections.abc import Sequence
from datetime import timedelta
from types import FrameType

import psutil

from deconattn.cli import handled, safe_output, say_error
from deconattn.config.command_line import parse_training_flags
from deconattn.errors import UserError, of_the_disk
from deconattn.launch import ranks
from deconattn.program import command, quoted

LAUNCHER = "deepspeed.launcher.launch"


class StopRequest:
    """Turns signals into a flag that the loop reads between steps.

    DeepSpeed's launcher is two processes deep, and a signal to the outer one ends it without a word to the
    ranks. They would train on as orphans, so a change of the launcher's parent counts as a request too.
    :meth:`ask` is the signals' handler.
    """

    def __init__(self) -> None:
        self._asked = False
        parent = psutil.Process(os.getppid())
        self._launcher = parent if LAUNCHER in parent.cmdline() else None
        self._grandparent = parent.ppid()

    def __bool__(self) -> bool:
        return self._asked or self._orphaned()

    def ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True

    def _orphaned(self) -> bool:
        if self._launcher is None:
            return False
        try:
            return os.getppid() != self._launcher.pid or self._launcher.ppid() != self._grandparent
        except psutil.Error:
            return True


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, and exit 0; exit 2 with one line on standard error where the user can mend the cause, else 1.

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
    except UserError as error:
        say_error(error)
        sys.exit(2)
    try:
        flags = parse_training_flags(given)
        from deconattn.launch.preflight import check_flags  # only now: --help has left, and waits for no import

        check_flags(flags, ranks.world_size())
        if flags.run.max_restarts:
            raise UserError(
                "--max-restarts needs our own launcher, which did not start this rank: use "
                f"{command('train')} without deepspeed, torchrun, srun or mpirun, or leave the flag out"
            )
    except (UserError, OSError) as error:
        if isinstance(error, OSError) and error.filename is None:
            raise
        if ranks.rank() == 0:  # all ranks found the same
            say_error(error if isinstance(error, UserError) else of_the_disk(error, error.filename))
        sys.exit(2)

    import torch.distributed

    from deconattn.parallel import process_group

    try:
        process_group.start_distributed(timedelta(minutes=flags.engine.distributed_timeout_minutes))
    except RuntimeError as error:
        meeting = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        reason = next(iter(str(error).splitlines()), "")
        print(f"error: rank {ranks.rank()} did not meet the other ranks at {meeting}: {reason}", file=sys.stderr)
        sys.exit(1)

    from deconattn.evaluation.in_loop import scorer
    from deconattn.launch.faults import Watch
    from deconattn.launch.peers import check_alike, introduce
    from deconattn.train.trainer import Trainer

    watch = Watch(introduce())
    try:
        check_alike(flags, watch.peers)
        trainer = Trainer(flags, stop, scorer(flags.evaluation))
        resume = f"{command('train')} --save {quoted(trainer.run_folder)} --resume"
        watch.situation = lambda: f", after step {trainer.progress.step}; to go on: {resume}"
        trainer.run()
        watch.leave()
    except Exception as error:
        watch.end(error)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
