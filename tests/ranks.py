"""Ranks on this machine that stay up between jobs: starting one costs seconds, an engine in it next to nothing."""

import gc
import multiprocessing
import os
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

TIMEOUT_SECONDS = 240.0


class Ranks:
    """A process group of `world_size` CPU processes that run functions together.

    A function is called with the same keyword arguments on every rank; rank 0's return value is the result. It and
    its arguments must be picklable. After a failure the processes are gone and the object is of no further use.

    Args:
        compiling: whether torch.compile does anything there; without, they start seconds sooner.
    """

    def __init__(self, world_size: int, compiling: bool = False) -> None:
        from deconattn.launch.ranks import free_port

        context = multiprocessing.get_context("spawn")
        port = free_port()
        self._connections: list[Connection] = []
        self._processes = []
        for rank in range(world_size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, rank, world_size, port, compiling), daemon=True)
            process.start()
            theirs.close()
            self._connections.append(ours)
            self._processes.append(process)

    def __call__(self, function: Callable[..., Any], **arguments: Any) -> Any:
        """Run on all ranks.

        Raises:
            RuntimeError: some rank raised (with its traceback), died, or took too long.
        """
        for connection in self._connections:
            connection.send((function, arguments))
        results: dict[int, Any] = {}
        while len(results) < len(self._connections):
            pending = {c: rank for rank, c in enumerate(self._connections) if rank not in results}
            ready = wait(list(pending), TIMEOUT_SECONDS)
            if not ready:
                self.close()
                raise RuntimeError(f"{function.__name__}: no answer in {TIMEOUT_SECONDS:.0f} s")
            for connection in (c for c in pending if c in ready):
                rank = pending[connection]
                try:
                    failure, results[rank] = connection.recv()
                except EOFError:
                    failure = "the process died"
                if failure is not None:  # the others may wait in a collective for ever
                    self.close()
                    raise RuntimeError(f"{function.__name__}, rank {rank}: {failure}")
        return results[0]

    @property
    def closed(self) -> bool:
        return not any(process.is_alive() for process in self._processes)

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()


def _serve(connection: Connection, rank: int, world_size: int, port: int, compiling: bool) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_SIZE=str(world_size))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1")
    os.environ["TORCHDYNAMO_DISABLE"] = "0" if compiling else "1"
    import deepspeed.comm
    import torch

    from deconattn.parallel import process_group

    torch.set_num_threads(1)
    process_group.start_distributed()
    lasting = set(_groups())
    while True:
        function, arguments = connection.recv()
        try:
            connection.send((None, function(**arguments)))
            gc.collect()
            for group in _groups():
                if group not in lasting:  # each has threads of its own, and an engine makes a dozen
                    deepspeed.comm.destroy_process_group(group)
        except Exception:
            connection.send((traceback.format_exc(), None))


def _groups() -> list[Any]:
    from torch.distributed import distributed_c10d

    return list(distributed_c10d._world.pg_map)
