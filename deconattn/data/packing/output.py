"""What a pack may write into."""

from pathlib import Path

from deconattn.data.manifest import MANIFEST_NAME, TOKENIZER_NAMES, read_manifest
from deconattn.errors import UserError

REPORT_NAME = "report.json"
"""What the pack took and skipped, beside the manifest."""


def check_output(out: Path, overwrite: bool) -> None:
    """Refuse an output folder that holds anything but, given `overwrite`, a packed corpus and nothing besides."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} exists and is not a folder; give another --out")
    if out.is_mount():  # nothing can be renamed over it, which would show only at the very end
        raise UserError(f"{out} is a mount point; give --out a folder below it")
    if not out.exists() or not any(out.iterdir()):
        return
    if not (out / MANIFEST_NAME).exists():
        raise UserError(f"{out} is not empty and not a packed corpus; give another --out or remove it yourself")
    if not overwrite:
        raise UserError(f"{out} already holds a packed corpus; give another --out, or --overwrite to replace it")
    known = {MANIFEST_NAME, REPORT_NAME, *TOKENIZER_NAMES, *(shard.name for shard in read_manifest(out).shards)}
    strangers = sorted(entry.name for entry in out.iterdir() if entry.name not in known)
    if strangers:
        raise UserError(f"{out} holds {strangers[0]}, which no pack wrote; move it away before --overwrite")
