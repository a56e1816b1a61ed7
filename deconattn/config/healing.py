"""Checks of the flags by which a run begins with a trained model."""

from pathlib import Path
from typing import TYPE_CHECKING

from deconattn.errors import UserError

if TYPE_CHECKING:
    from deconattn.config.flags import TrainingFlags


def check_healing(flags: "TrainingFlags") -> None:
    """Check what is known before a folder is opened.

    Raises:
        UserError: naming the flag and the remedy.
    """
    start = flags.healing.init_from
    if start is not None and not flags.data.data:
        raise UserError("--init-from needs --data: name packed corpora whose tokens the model knows")
    if start is not None and not flags.run.resume:
        check_folder("--init-from", start)


def check_folder(flag: str, folder: Path) -> None:
    """Raise UserError if the folder of a trained model is not there."""
    if not folder.is_dir():
        raise UserError(f"{flag} {folder}: no such folder: give a run, a checkpoint or a Hugging Face folder")
