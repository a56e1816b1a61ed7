"""When a rank dies, hangs or fails: every other rank learns of it, one a machine says which, and all end.

What a dead rank leaves behind: gloo tells its neighbours at once, by an exception that names nobody; NCCL may
leave them waiting for the whole timeout, where no signal handler runs; ranks that do not talk to it learn nothing.
So a thread of each rank looks every second after the processes on its machine, and at the roll
(:mod:`~deconattn.launch.roll`). Whoever sees something wrong writes there; then all others do, and who is missing is
dead or hung.
"""

import json
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import NoReturn, TextIO, TypeVar, cast

import psutil
import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store

from deconattn.errors import UserError
from deconattn.launch.peers import Peer
from deconattn.launch.roll import Roll
from deconattn.shown import SafeStream, one_line

LOOK_SECONDS = 1.0
ANSWER_SECONDS = 5.0
"""A rank that has not answered by then does not."""
LINGER_SECONDS = 2.0
"""From a rank's last word to its end: rank 0 holds the roll that others have yet to read. Who merely heard of a
failure waits twice as long: DeepSpeed's launcher passes on the exit code that it sees first."""
NAMED = 8

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Word:
    """A rank's line in the roll: it is `alive`, has `lost` the others, or has `failed` by itself."""

    rank: int
    state: str
    reason: str


class Watch:
    """Watcher of a rank over the others, from the first collective call to :meth:`leave`.

    Attributes:
        situation: what to add to a last line: where training stood, how to go on.
        record: called on every rank before it ends because a collective timed out.
        doing: the collective that this rank was in, as a clause.
    """

    def __init__(self, peers: list[Peer]) -> None:
        self.peers = peers
        self.situation: Callable[[], str] = str
        self.record: Callable[[], None] = lambda: None
        self.doing: Callable[[], str] = str
        self._me = peers[dist.get_rank()]
        self._processes = {peer: process_of(peer.pid) for peer in peers if peer.machine == self._me.machine}
        self._over, self._called = threading.Event(), threading.Event()
        self._concluding = threading.Lock()
        self._stopped_looks = 0
        self._unanswered = False
        if len(peers) > 1:
            leader = next(iter(self._processes))
            # A connection of its own: another's wait must not block ours.
            connect = _get_default_store().clone  # type: ignore[attr-defined]
            self._roll = Roll(self._me, leader, connect, lambda: state_of(self._processes[leader]) == "runs")
            threading.Thread(target=self._look_out, daemon=True).start()
            threading.Thread(target=self._listen, daemon=True).start()

    def leave(self) -> None:
        """Wait for all ranks to come here; from then on any may end. A collective call."""
        dist.barrier()
        self._over.set()

    def end(self, error: Exception) -> NoReturn:
        """End this process after an exception: exit code 2 for what the user can mend, else 1."""
        if isinstance(error, UserError):
            # All ranks find most such things alike, and one of them is enough to say so.
            self._fail(str(error), f"error: {one_line(error)}", 2, once=str(error))
        if len(self.peers) > 1 and _is_lost_connection(error):
            with self._concluding:  # where the thread was first, wait for it to end the process
                self._conclude("lost", first_sentence(error) + self.doing())
        reason = f"{type(error).__name__}: {first_sentence(error)}"
        line = f"error: rank {self._me.rank}: {reason}{self.situation()}"
        text = "".join(traceback.format_exception(error)) + line
        self._fail(reason, text, 1, once=f"{self._me.machine} {reason}")

    def _fail(self, reason: str, text: str, code: int, once: str) -> NoReturn:
        """End for a reason of our own: say it, unless a rank has that said the same `once`, and tell the others."""
        self._over.set()
        alone = len(self.peers) == 1
        if alone or self._ask(lambda: self._roll.is_first(once), otherwise=True):
            speak(text)
        if not alone:
            self._answer("failed", reason)
            time.sleep(LINGER_SECONDS)
        end_process(code)

    def _look_out(self) -> None:
        while not self._over.wait(LOOK_SECONDS):
            if self._states("died") or self._called.is_set():
                break
            self._warn_of_stopped()
        with self._concluding:
            self._conclude("alive", "")

    def _listen(self) -> None:
        """Wait for the roll, in a thread of its own: where the store does not answer, nor does this return."""
        with suppress(dist.DistError):  # the store, which rank 0 keeps, is gone
            while not self._over.wait(LOOK_SECONDS) and not self._roll.is_called():
                pass
        self._called.set()

    def _conclude(self, state: str, reason: str) -> None:
        """Find out who is to blame, say it, and end the process, unless it is an orderly end after all."""
        if self._over.is_set():
            return
        self._answer(state, reason)
        words = self._words()
        failed = any(word.state == "failed" for word in words)
        if not failed:
            if self._over.wait(ANSWER_SECONDS):
                return
            words = self._words() or words
        if self._over.is_set():
            return
        if late := next((word.reason for word in words if "Timed out" in word.reason), None):
            reason = reason or late
            self.record()
        blame = self._blame(words)
        if blame and self._is_speaker():
            because = f" ({reason})" if reason else ""
            line = f"error: {blame}; rank {self._me.rank} ends{because}{self.situation()}"
            speak(line)
        if not self._over.wait(LINGER_SECONDS * (1 + failed)):
            end_process(1)

    def _blame(self, words: list[Word]) -> str | None:
        """The culprits; None where they were on this machine and have spoken for themselves."""
        failed = [word for word in words if word.state == "failed"]
        if failed:
            if any(self.peers[word.rank] in self._processes for word in failed):
                return None
            return f"{self.peers[failed[0].rank]} failed: {failed[0].reason}"
        heard = {word.rank for word in words}
        # Without a roll it is rank 0, which keeps it, that is silent.
        silent = [peer for peer in (self.peers if heard else self.peers[:1]) if peer.rank not in heard]
        states = dict.fromkeys(silent, "does not answer") | self._states("is stopped") | self._states("died")
        if not states and any("Timed out" in word.reason for word in words):
            late = [self.peers[rank] for rank in sorted(heard - {word.rank for word in words if word.state == "lost"})]
            states = dict.fromkeys(late, "did not come to a collective in time")
        if not states:
            return "the ranks lost their connection"
        named = [f"{peer} {states[peer]}" for peer in sorted(states, key=lambda peer: peer.rank)]
        more = [f"{len(named) - NAMED} more"] if len(named) > NAMED else []
        return ", ".join(named[:NAMED] + more)

    def _states(self, wanted: str) -> dict[Peer, str]:
        """The processes on this machine that are in a state."""
        return {peer: wanted for peer, process in self._processes.items() if state_of(process) == wanted}

    def _is_speaker(self) -> bool:
        absent = self._states("died") | self._states("is stopped")
        return self._me.rank == min(peer.rank for peer in self._processes if peer not in absent)

    def _warn_of_stopped(self) -> None:
        """NCCL's watchdog ends the process without asking us, so that this must have been said before."""
        stopped = self._states("is stopped")
        self._stopped_looks = self._stopped_looks + 1 if stopped else 0
        if self._stopped_looks == 5 and self._is_speaker():
            names = ", ".join(map(str, stopped))
            speak(f"warning: stopped by a signal, with all ranks waiting: {names}")

    def _answer(self, state: str, reason: str) -> None:
        word = json.dumps([self._me.rank, state, reason])
        self._ask(lambda: self._roll.add(word), otherwise=None)

    def _words(self) -> list[Word]:
        lines: list[str] = self._ask(self._roll.lines, otherwise=[])
        return [Word(*json.loads(line)) for line in lines]

    def _ask(self, question: Callable[[], Answer], otherwise: Answer) -> Answer:
        """The store's answer. Without rank 0 there is none, and where rank 0 is stopped no timeout of its helps."""
        if self._unanswered:
            return otherwise
        answers = []

        def ask() -> None:
            with suppress(dist.DistError):
                answers.append(question())

        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        thread.join(ANSWER_SECONDS)
        self._unanswered = thread.is_alive()
        return answers[0] if answers else otherwise


def process_of(pid: int) -> psutil.Process | None:
    """Return a process; None if it has ended."""
    try:
        return psutil.Process(pid)
    except psutil.NoSuchProcess:
        return None


def state_of(process: psutil.Process | None) -> str:
    """Return "runs", "is stopped" or "died"."""
    try:
        if process is None or not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
            return "died"
        return "is stopped" if process.status() == psutil.STATUS_STOPPED else "runs"
    except psutil.NoSuchProcess:
        return "died"


def _is_lost_connection(error: Exception) -> bool:
    """NCCL and the store have exceptions of their own; gloo's is a RuntimeError that begins with a file of gloo's."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error)[:200])


def first_sentence(error: Exception) -> str:
    """Strip the C++ file before a message and the advice after it."""
    line = next(iter(str(error).splitlines()), "")
    return re.sub(r"^\[\S*\]\s*", "", line).partition(". This is typically")[0]


def speak(text: str) -> None:
    """Print on the process's own standard error, in one piece: what the main thread redirects just now is not ours."""
    with suppress(OSError, AttributeError):  # closed, or there is none
        SafeStream(cast(TextIO, sys.__stderr__)).write(text + "\n")
        cast(TextIO, sys.__stderr__).flush()


def end_process(code: int) -> NoReturn:
    """End the process at once; sys.exit would wait for threads that may wait for a dead rank."""
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)
