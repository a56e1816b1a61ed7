"""The section of docs/performance.md: pictures and tables of what was measured, with machine, date and command."""

import os
from pathlib import Path

from benchmarks.decoding.report import mebibytes, time_and_ratio
from benchmarks.machine import markdown_table
from benchmarks.plots.data import Decoding, Operations, Origin, Throughput
from deconattn.errors import UserError

BEGIN = "<!-- performance: made by python benchmarks/plots/plot.py docs/performance.md -->"
END = "<!-- end of performance -->"


def performance_section(
    throughputs: list[Throughput], decodings: list[Decoding], operations: list[Operations], images: Path, folder: Path
) -> str:
    """Markdown of everything there is, for a page in `folder`; a picture is shown where one of that key was drawn."""
    parts = [_throughput(found, _image(images, folder, found.key)) for found in throughputs]
    parts += [
        _decoding(found, "".join(_image(images, folder, f"{found.key}-{what}") for what in ("time", "cache")))
        for found in decodings
    ]
    parts += [_operations(found, _image(images, folder, found.key)) for found in operations]
    return "\n\n".join(parts)


def with_section(readme: str, section: str, begin: str = BEGIN, end: str = END) -> str:
    """The page with what is between two markers made anew, by default its performance section.

    Raises:
        UserError: the markers are missing.
    """
    if begin not in readme or end not in readme:
        raise UserError(f"no such section there: put these two lines where it is to be:\n{begin}\n{end}")
    before, after = readme.index(begin) + len(begin), readme.index(end)
    return f"{readme[:before]}\n\n{section}\n\n{readme[after:]}"


def _throughput(found: Throughput, image: str) -> str:
    with_mfu = any(bar.mfu for bar in found.bars)
    columns = ["contestant", "tokens/s", f"over {found.reference}", *(["MFU"] if with_mfu else []), "peak GiB"]
    rows = [
        [
            bar.name if bar.variant else f"*{bar.name}*",
            f"{bar.tokens_per_second:,.0f}",
            f"{bar.ratio:.2f}" if bar.ratio else "",
            *([f"{bar.mfu:.1%}" if bar.mfu else ""] if with_mfu else []),
            f"{bar.memory_gib:.1f}",
        ]
        for bar in found.bars
    ]
    return f"**Training: {found.title}.**\n\n{image}{markdown_table(columns, rows)}\n{_told(found.origin)}"


def _decoding(found: Decoding, images: str) -> str:
    """Of every batch the shortest and the longest cache; the pictures have the others."""
    lengths = dict.fromkeys((found.lengths[0], found.lengths[-1]))
    cases = [(batch, length) for batch in found.batches for length in lengths]
    largest = cases[-1]
    columns = ["contestant", *(f"{batch} x {length}" for batch, length in cases)]
    columns += [f"MiB at {largest[0]} x {largest[1]}", "`generate`", "a step of the smallest model"]
    rows = []
    for curve in found.curves:
        points = [curve.points.get(batch, {}).get(length) for batch, length in cases]
        cells = [
            time_and_ratio(one.ms_a_token, one.ratio) if one else ""
            for one in (*points, curve.generate, curve.overhead)
        ]
        cells.insert(len(cases), mebibytes(points[-1].cache_bytes, points[-1].fixed_bytes) if points[-1] else "")
        rows.append([curve.name if curve.variant else f"*{curve.name}*", *cells])
    title = f"**Generation: {found.title}** (ms a token, and how many times as fast as {found.peer}; sequences x tokens"
    title += " held; MiB of cache, and held once for all rows)."
    return f"{title}\n\n{images}{markdown_table(columns, rows)}\n{_told(found.origin)}"


def _operations(found: Operations, image: str) -> str:
    ratios = found.ratios["training"]
    table = [
        [name, *(f"{points[length]:.2f}" if length in points else "" for length in found.lengths)]
        for name, points in ratios.items()
    ]
    what = f"forward and backward, time over attention's ({found.baseline}) in the same rounds"
    columns = ["tokens in a sequence", *map(str, found.lengths)]
    title = f"**Mixing operations: {found.title}** ({what})."
    return f"{title}\n\n{image}{markdown_table(columns, table)}\n{_told(found.origin)}"


def _image(images: Path, folder: Path, key: str) -> str:
    path = images / f"{key}.svg"
    return f"![{key}]({os.path.relpath(path, folder)})\n\n" if path.is_file() else ""


def _told(origin: Origin) -> str:
    """Where a result came from, in a line."""
    return f"{origin.date}, {origin.device}, {origin.versions}: `{origin.command}`"
