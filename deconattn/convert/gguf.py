"""A GGUF file as a Hugging Face folder, or as step 0 of a run of ours."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from deconattn.checkpoint.gguf_source import write_folder
from deconattn.convert import new_run
from deconattn.durable import staged_folder
from deconattn.errors import UserError


def write_hf(source: Path, out: Path) -> str:
    """Write the Hugging Face folder `out`, whole or not at all; return a line that says so.

    Raises:
        UserError: `out` is in use, or the file is not to be read.
    """
    with staged_folder(out, new_run.check_free) as folder:
        model_type, parameters = write_folder(source, folder)
    return f"{source} -> {out} ({model_type}, {parameters:,} parameters, fp32)"


def write_run(source: Path, out: Path, arguments: Sequence[str], fitted: Path | None = None) -> str:
    """Write the run folder `out` as :func:`deconattn.convert.new_run.write_run` does, by way of a temporary folder.

    Raises:
        UserError: `out` is in use; the file, the flags or the data will not do.
    """
    new_run.check_free(out)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / source.stem
        folder.mkdir()
        write_folder(source, folder)
        try:
            return new_run.write_run(folder, out, arguments, fitted).replace(str(folder), str(source))
        except UserError as error:
            raise UserError(str(error).replace(str(folder), str(source))) from error
