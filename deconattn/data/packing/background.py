"""Work for the disk in a thread of its own, so that nobody waits for it."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Background:
    """One thread that does one thing after the other; at most one waits."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "background")
        self._last: Future[None] | None = None

    def submit(self, task: Callable[[], None]) -> None:
        """Run `task` when the one before is done. Raises what that raised."""
        self.wait()
        self._last = self._pool.submit(task)

    def wait(self) -> None:
        """Wait for the last task. Raises what it raised."""
        if self._last is not None:
            last, self._last = self._last, None
            last.result()

    def close(self) -> None:
        """Let a running task finish, whatever comes of it."""
        self._pool.shutdown(wait=True)
