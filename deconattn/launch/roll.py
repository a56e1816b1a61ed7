"""The roll: a text in the store that the ranks met at, to which whoever sees something wrong adds a line.

The store is rank 0's, and each connection to it is a file of that one process. So of a machine's ranks one, its leader,
has a connection; the others ask it, over a socket that this machine alone sees. Where the leader is dead or does not
answer they connect by themselves.
"""

import hashlib
import json
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch.distributed as dist

from deconattn.launch.peers import Peer

ROLL = "roll"
RELAY_SECONDS = 2.0
"""A leader that has not answered by then is not asked again."""
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid
_LONGEST = 2**26


class Store:
    """The roll by a connection of this process's own.

    Args:
        store: of torch's; nothing else may wait in it.
    """

    def __init__(self, store: Any) -> None:
        self._store = store

    def is_called(self) -> bool:
        """Whether there is a line."""
        return bool(self._store.check([ROLL]))

    def add(self, line: str) -> None:
        """Add a line."""
        self._store.append(ROLL, line + "\n")

    def lines(self) -> list[str]:
        """All lines; waits until there is one."""
        return self._store.get(ROLL).decode().splitlines()

    def is_first(self, what: str) -> bool:
        """Whether nobody has asked that of `what` before."""
        return bool(self._store.add(what, 1) == 1)


class Roll:
    """The roll as a rank sees it: by its leader, or by a connection of its own.

    Calls raise dist.DistError where the store is gone, and wait where it does not answer.

    Args:
        leader: of this machine's ranks; the first of them.
        connect: makes a connection to the store.
        leader_runs: tells whether the leader is worth asking.
    """

    def __init__(
        self, me: Peer, leader: Peer, connect: Callable[[], Any], leader_runs: Callable[[], bool] = lambda: True
    ) -> None:
        self._connect, self._leader_runs = connect, leader_runs
        self._store: Store | None = None
        self._relay: _Relay | None = None
        self._one_by_one = threading.Lock()
        address = _address(leader) if sys.platform == "linux" else None
        if me.rank == leader.rank:
            self._store = Store(connect())
            if address is not None:
                try:
                    self.desk = Desk(address, self._store)
                except OSError as error:
                    print(f"note: the ranks of {me.host} watch by a connection each: {error}", file=sys.stderr)
        elif address is not None:
            self._relay = _Relay(address)

    def is_called(self) -> bool:
        """See :class:`Store`, as of those that follow."""
        return bool(self._ask("is_called"))

    def add(self, line: str) -> None:
        self._ask("add", line)

    def lines(self) -> list[str]:
        return list(self._ask("lines"))

    def is_first(self, what: str) -> bool:
        return bool(self._ask("is_first", what))

    def _ask(self, question: str, *words: str) -> Any:
        with self._one_by_one:
            if self._relay is not None and self._leader_runs():
                try:
                    return self._relay.ask(question, *words)
                except OSError:
                    self._relay = None
            if self._store is None:
                self._store = Store(self._connect())
        return getattr(self._store, question)(*words)


class Desk:
    """Where a leader answers the other ranks of its machine, a thread each."""

    def __init__(self, address: bytes, store: Store) -> None:
        self._store = store
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(address)
        self._listener.listen(128)
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Take no more calls; those under way are answered."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                caller, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(caller,), daemon=True).start()

    def _serve(self, caller: socket.socket) -> None:
        with suppress(OSError, ValueError), caller:
            if not _is_ours(caller):
                return
            with caller.makefile("rwb") as stream:
                while line := stream.readline(_LONGEST):
                    question, *words = json.loads(line)
                    if question not in ("is_called", "add", "lines", "is_first"):
                        return
                    try:
                        answer = [True, getattr(self._store, question)(*words)]
                    except dist.DistError as error:
                        answer = [False, str(error)]
                    stream.write(json.dumps(answer).encode() + b"\n")
                    stream.flush()


class _Relay:
    """The other end of a desk. Raises OSError where nobody answers, dist.DistError where the leader's store is gone."""

    def __init__(self, address: bytes) -> None:
        self._address = address
        self._stream: Any = None

    def ask(self, question: str, *words: str) -> Any:
        if self._stream is None:
            self._stream = self._connected().makefile("rwb")
        self._stream.write(json.dumps([question, *words]).encode() + b"\n")
        self._stream.flush()
        line = self._stream.readline()
        if not line.endswith(b"\n"):
            raise OSError("the leader has left")
        succeeded, answer = json.loads(line)
        if not succeeded:
            raise dist.DistError(answer)
        return answer

    def _connected(self) -> socket.socket:
        caller = socket.socket(socket.AF_UNIX)
        caller.settimeout(RELAY_SECONDS)
        for seconds_left in (RELAY_SECONDS, 0.0):
            try:
                caller.connect(self._address)
                break
            except ConnectionRefusedError:  # the leader may be a moment later than we are
                if not seconds_left:
                    raise
                time.sleep(seconds_left)
        if not _is_ours(caller):
            raise OSError("the desk is another user's")
        return caller


def _address(leader: Peer) -> bytes:
    """A name in Linux's abstract namespace: no file is left behind."""
    machine = hashlib.sha256(leader.machine.encode()).hexdigest()[:16]
    return f"\0deconattn-{machine}-{leader.pid}-{leader.rank}".encode()


def _is_ours(other: socket.socket) -> bool:
    """Whether the same user is at the other end: abstract names have no permissions."""
    found = other.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return bool(_CREDENTIALS.unpack(found)[1] == os.getuid())
