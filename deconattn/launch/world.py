"""Number of ranks that DeepSpeed's launcher will start, known before it starts any."""

import os
from collections.abc import Sequence
from contextlib import redirect_stderr
from io import StringIO

from deepspeed.accelerator import get_accelerator
from deepspeed.launcher import runner

from deconattn.errors import UserError


def world_size(options: Sequence[str]) -> int:
    """The ranks that DeepSpeed's launcher makes of its options, by its own functions.

    Raises:
        UserError: options that it would not take, or a hostfile that it would pass over.
    """
    complaint = StringIO()
    try:
        with redirect_stderr(complaint):
            arguments = runner.parse_args([*options, "script"])
    except SystemExit as leaving:
        if not leaving.code:  # --help
            raise
        raise UserError(f"DEEPSPEED_ARGS: {complaint.getvalue().splitlines()[-1]}") from None
    hostfile = arguments.hostfile
    if hostfile != runner.DLTS_HOSTFILE and not os.path.isfile(hostfile):
        raise UserError(f"DEEPSPEED_ARGS: --hostfile {hostfile}: no such file; check the path")  # it would only warn
    chosen = arguments.include or arguments.exclude or arguments.num_nodes > 1 or arguments.num_gpus > 0
    try:
        hosts = runner.fetch_hostfile(hostfile) if os.path.isfile(hostfile) else {}
        visible = os.environ.get(get_accelerator().visible_devices_envs()[0], "")
        if not hosts and visible and not chosen:
            return len(visible.split(","))
        slots = runner.parse_inclusion_exclusion(
            hosts or {"localhost": get_accelerator().device_count()}, arguments.include, arguments.exclude
        )
    except ValueError as error:
        raise UserError(f"DEEPSPEED_ARGS: {error}") from error
    slots = runner.apply_num_nodes_and_gpus(slots, arguments.num_nodes, arguments.num_gpus)
    if arguments.no_ssh and not 0 <= arguments.node_rank < len(slots):
        raise UserError(
            f"DEEPSPEED_ARGS: --no_ssh needs --node_rank, this machine's place in the hostfile, 0 to {len(slots) - 1}"
        )
    if arguments.no_ssh and hosts and not arguments.master_addr:
        raise UserError("DEEPSPEED_ARGS: --no_ssh needs --master_addr, the address of the hostfile's first machine")
    return sum(map(len, slots.values()))
