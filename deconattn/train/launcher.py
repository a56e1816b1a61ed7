"""The shell half of `launch.sh`: check the flags, start DeepSpeed's launcher on it, pass signals on to the ranks.

    python -m deconattn.train.launcher LAUNCH_SH FLAGS...

DeepSpeed's own launcher answers a signal with exit code 1 whatever the ranks do. Here the ranks alone get it:
they write a checkpoint and exit 0, and so then does the launcher. `DEEPSPEED_ARGS` holds options for it, such
as `--hostfile hosts --num_gpus 4`.
"""

import os
import shlex
import signal
import subprocess
import sys
from contextlib import suppress
from types import FrameType

import psutil

from deconattn.cli import run
from deconattn.train.preflight import checked_flags
from deconattn.train.runtime import free_port, quiet_accelerator


def main() -> int:
    script, *arguments = sys.argv[1:]
    checked_flags(arguments)
    quiet_accelerator()
    options = shlex.split(os.environ.get("DEEPSPEED_ARGS", ""))
    if not any(option.startswith(("--master_port", "--hostfile")) for option in options):
        options += ["--master_port", str(free_port())]  # two runs side by side must not share the default
    command = [sys.executable, "-m", "deepspeed.launcher.runner", *options, script, *arguments]
    # A session of its own, or Ctrl-C would reach DeepSpeed's launcher too.
    process = subprocess.Popen(command, start_new_session=True)

    def pass_on(number: int, frame: FrameType | None) -> None:
        ranks = _ranks_below(process.pid)
        for rank in ranks:
            with suppress(psutil.Error):
                rank.send_signal(signal.SIGTERM)
        if not ranks:  # none started yet, or all on other machines: DeepSpeed's launcher knows how to end them
            process.send_signal(number)

    signal.signal(signal.SIGTERM, pass_on)
    signal.signal(signal.SIGINT, pass_on)
    code = process.wait()
    return code if code >= 0 else 128 - code


def _ranks_below(pid: int) -> list[psutil.Process]:
    found = []
    with suppress(psutil.Error):
        for process in psutil.Process(pid).children(recursive=True):
            with suppress(psutil.Error):  # it may have ended meanwhile
                if any(argument.startswith("--local_rank") for argument in process.cmdline()):
                    found.append(process)
    return found


if __name__ == "__main__":
    run(main)
