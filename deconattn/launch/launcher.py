"""From one command to all ranks: check the flags, start DeepSpeed's launcher, and again where a rank dies.

    python -m deconattn.launch.launcher [LAUNCH_SH] FLAGS...

is the shell half of `launch.sh`, which is then the ranks' program; `deconattn train` needs no file outside the package.

DeepSpeed's own launcher answers a signal with exit code 1 whatever the ranks do. Here the ranks alone get it:
they write a checkpoint and exit 0, and so then does the launcher. `DEEPSPEED_ARGS` holds options for it, such
as `--hostfile hosts --num_gpus 4`.
"""

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType

import psutil

from deconattn.cli import handled, run
from deconattn.config.command_line import parse_training_flags
from deconattn.config.run_config import RUN_CONFIG
from deconattn.errors import UserError
from deconattn.launch.ranks import is_rank
from deconattn.launch.start import model_of_start
from deconattn.launch.worker import OUR_LAUNCHER
from deconattn.locks import check_unused

USER_ERROR = 2
MEETING_SECONDS = 10.0
"""Launchers of other machines wait as long before a restart, or their ranks might meet the dying ones."""
SECONDS_BETWEEN_LOOKS = 0.5
WORKER = ("--module", "deconattn.launch.worker")
"""The program of each rank, as DeepSpeed's launcher takes it."""


def main() -> int:
    arguments = sys.argv[1:]
    if not arguments or arguments[0].startswith("-"):  # without a script
        return launch(arguments)
    return launch(arguments[1:], arguments[:1])


def launch(arguments: Sequence[str], program: Sequence[str] = WORKER) -> int:
    """Train on as many ranks as `DEEPSPEED_ARGS` says; returns an exit code as a shell would.

    Args:
        arguments: the flags of the training.
        program: what each rank runs, a script or :data:`WORKER`.

    Raises:
        UserError: whatever can be known to be wrong before a rank starts.
    """
    options = shlex.split(os.environ.get("DEEPSPEED_ARGS", ""))
    if is_rank(os.environ, options):
        from deconattn.launch.worker import main as be_a_rank

        be_a_rank(arguments)
        return 0
    flags = parse_training_flags(arguments, model_of_start)
    # Only now, since --help has left: these, and DeepSpeed, take seconds to import.
    from deconattn.launch.preflight import check_flags
    from deconattn.parallel.process_group import quiet_accelerator
    from deconattn.train.run_folder import make_run_folder

    quiet_accelerator()
    from deconattn.launch.world import world_size  # after that: DeepSpeed looks for an accelerator when it is imported

    for note in check_flags(flags, world_size(options)).notes:
        print(f"note: {note}", file=sys.stderr)
    folder, restarts = flags.run.save, flags.run.max_restarts
    if folder is not None:
        check_unused(folder)  # rank 0 takes the lock; this says so before any rank starts
    if restarts:
        if folder is None and "--no_ssh" in options:
            raise UserError("--max-restarts on several machines needs --save DIR, the same folder on all")
        folder = folder or make_run_folder(flags)  # a restart must know where the run is
        # The last of a flag counts, and comes before a file's. The workers refuse to restart by themselves.
        arguments = [*arguments, "--max-restarts", "0", "--save", str(folder)]
    from deconattn.launch.flight_recorder import RECORDER, records_since_now

    told = records_since_now(folder / RECORDER) if folder is not None else str
    job, code = LauncherProcess(), 0
    with handled(job.pass_on, signal.SIGTERM, signal.SIGINT):
        for attempt in range(restarts + 1):
            begun = folder is not None and (folder / RUN_CONFIG).is_file()
            if attempt:
                where = "the newest good checkpoint" if begun else "the start"
                print(f"restart {attempt} of {restarts} from {where}: {job.reason(code)}", file=sys.stderr, flush=True)
                if "--no_ssh" in options and job.stop_asked(MEETING_SECONDS):
                    return code
            resume = ["--resume"] if attempt and begun and not flags.run.resume else []
            code = job.run([*program, *arguments, *resume], options)
            if code in (0, USER_ERROR) or job.stop_asked():
                return code
    print(f"error: {job.reason(code)}{told()}", file=sys.stderr)
    return code


class LauncherProcess:
    """DeepSpeed's launcher as a child process, once or again; signals, handed to :meth:`pass_on`, stop it in order."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._stop = threading.Event()
        self._lost = False

    def stop_asked(self, within: float = 0.0) -> bool:
        """Whether a signal has come, or comes within some seconds."""
        return self._stop.wait(within)

    def run(self, program: Sequence[str], options: Sequence[str]) -> int:
        """Run a program, with its arguments, as ranks; returns an exit code as a shell would."""
        from deconattn.launch.ranks import free_port

        command = [sys.executable, "-m", "deepspeed.launcher.runner", *options]
        if not any(option.startswith(("--master_port", "--hostfile", "-H")) for option in options):
            command += ["--master_port", str(free_port())]  # two runs side by side must not share the default
        if not any(option.startswith(("--log_level", "--quiet", "-q")) for option in options):
            # Its lines would stand between ours; its one warning is that there is no hostfile, which none asked for.
            command += ["--log_level", "error"]
        # A session of its own, or Ctrl-C would reach DeepSpeed's launcher too.
        environment = os.environ | {OUR_LAUNCHER: str(os.getpid())}
        self._process = subprocess.Popen([*command, *program], start_new_session=True, env=environment)
        if self._stop.is_set():  # the signal came between two starts
            self._process.terminate()
        code = self._process.wait()
        left = _ranks_of(self._process.pid)
        # DeepSpeed's outer launcher takes a killed inner one for success, and either leaves its ranks alone.
        self._lost = code <= 0 and bool(left)
        if self._lost:
            print("DeepSpeed's launcher is gone: its ranks save and end", file=sys.stderr, flush=True)
        while left:
            time.sleep(SECONDS_BETWEEN_LOOKS)
            left = _ranks_of(self._process.pid)
        code = 1 if self._lost and code == 0 else code
        # A rank killed by signal N leaves DeepSpeed's launcher with exit code -N, modulo 256.
        number = -code if code < 0 else 256 - code
        return 128 + number if 0 < number < signal.NSIG else code

    def reason(self, code: int) -> str:
        """Why the last run ended with an exit code."""
        if self._lost:
            return "DeepSpeed's launcher was killed"
        if 128 < code < 128 + signal.NSIG:
            return f"a rank was killed by signal {code - 128} ({signal.strsignal(code - 128)})"
        return f"the ranks ended with exit code {code}"

    def pass_on(self, number: int, frame: FrameType | None) -> None:
        self._stop.set()
        if self._process is None:
            sys.exit(128 + number)
        ranks = _ranks_of(self._process.pid)
        for rank in ranks:
            with suppress(psutil.Error):
                rank.send_signal(signal.SIGTERM)
        if not ranks:  # none started yet, or all on other machines: DeepSpeed's launcher knows how to end them
            self._process.send_signal(number)


def _ranks_of(session: int) -> list[psutil.Process]:
    """The ranks on this machine that DeepSpeed's launcher, the first process of a session, has started."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError, PermissionError):  # it may have ended meanwhile
            if os.getsid(process.pid) == session and any(
                argument.startswith("--local_rank") for argument in process.cmdline()
            ):
                found.append(process)
    return found


if __name__ == "__main__":
    run(main)
