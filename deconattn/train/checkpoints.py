"""The checkpoints of a training: begun when they are due, waited for where they are needed, told of when they fail."""

from collections.abc import Callable
from pathlib import Path

from deconattn.checkpoint.format import CHECKPOINTS, steps_in
from deconattn.checkpoint.manifest import Progress, is_whole
from deconattn.errors import UserError
from deconattn.train.saving import GivenUp, Saver


class Checkpoints:
    """What a training has saved, is saving, or could not save; the same on every rank.

    Args:
        saver: writes them.
        run: the run folder.
        wait: each until it is on the disk.
        saved_step: step that there is a checkpoint of, -1 for none.
        tell: called on rank 0 with each save that was given up.
    """

    def __init__(self, saver: Saver, run: Path, wait: bool, saved_step: int, tell: Callable[[GivenUp], None]) -> None:
        self._saver, self._run, self._wait, self._tell = saver, run, wait, tell
        self._saved_step = saved_step

    def save(self, progress: Progress) -> None:
        """Begin to save the state that the engine is in; end it too, where each is waited for."""
        self.settle()
        self._saver.begin(progress)
        self._saved_step = progress.step
        if self._wait:
            self.settle()

    def look(self) -> None:
        """Tell of a save that was given up, if there was one; waits for nothing."""
        if (failed := self._saver.given_up()) is not None:
            self._tell(failed)

    def settle(self) -> GivenUp | None:
        """Wait for what is being saved; returns why it was given up."""
        failed = self._saver.wait()
        if failed is not None and failed.step == self._saved_step:
            self._saved_step = -1
        self.look()
        return failed

    def has(self, step: int) -> bool:
        """Whether the checkpoint of this step is on the disk, or on its way there."""
        return self._saved_step == step

    def folder(self, step: int) -> Path:
        """Return the folder of a step's checkpoint."""
        return self._run / CHECKPOINTS / f"step-{step}"

    def last(self, progress: Progress) -> Path:
        """Have the step that a run ends at saved, and return its folder.

        Raises:
            UserError: on every rank, where it could not be.
        """
        self.settle()
        if not self.has(progress.step):
            self.save(progress)
            if (failed := self.settle()) is not None:
                before = next((folder.name for folder in steps_in(self._run) if is_whole(folder)), None)
                good = "there is none before it" if before is None else f"the last good one is {before}"
                raise UserError(
                    f"checkpoint {self.folder(progress.step)} could not be written ({failed.reason}); {good}: free "
                    "space or check permissions, then --resume"
                )
        return self.folder(progress.step)

    def close(self, seconds: float) -> None:
        """Give what is being saved this long to end, when the run ends in an error; says nothing."""
        self._saver.settle(seconds)
