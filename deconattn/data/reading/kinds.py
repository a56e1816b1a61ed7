"""What a file's name says about its content: the one table of endings."""

import os

KINDS = {
    ".txt": "text",
    ".jsonl": "json",
    ".jsonlines": "json",
    ".ndjson": "json",
    ".json": "json",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
CODECS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".xz": "xz"}
_COMPRESSIBLE = ("text", "json")
EXTENSIONS = ", ".join(KINDS) + f" (text and JSON also with {', '.join(CODECS)})"
HIDDEN = "hidden"


def classify(name: str) -> tuple[str, str | None] | None:
    """Kind and codec of a file to read; None for one of an unknown kind."""
    stem, codec = _without_codec(name)
    kind = KINDS.get(os.path.splitext(stem)[1])
    return None if kind is None or (codec and kind not in _COMPRESSIBLE) else (kind, codec)


def is_json(name: str) -> bool:
    """Whether the content alone tells JSON lines from an array or a single object."""
    return _without_codec(name)[0].endswith(".json")


def ending(name: str) -> str:
    """The kind of a file that is left out, as summaries name it: its ending, or that it is hidden or has none."""
    if name.startswith("."):
        return HIDDEN
    stem, codec = _without_codec(name)
    last = os.path.splitext(stem)[1]
    return last + name.lower()[len(stem) :] if codec else last or "no ending"


def _without_codec(name: str) -> tuple[str, str | None]:
    stem, last = os.path.splitext(name.lower())
    codec = CODECS.get(last)
    return (stem, codec) if codec else (name.lower(), None)
