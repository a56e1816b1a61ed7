"""What a command line without dimensions takes from the model of `--init-from`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def model_of_start(folder: Path) -> Mapping[str, Any]:
    """Return :func:`deconattn.convert.run_flags.model_defaults`, imported where the flag is given: it takes seconds."""
    from deconattn.convert.run_flags import model_defaults

    return model_defaults(folder)
