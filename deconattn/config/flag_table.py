"""Table of flags in docs/flags.md, made from the dataclasses: `python -m deconattn.config.flag_table`."""

import ast
import dataclasses
import inspect
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

from deconattn.config import flag_groups
from deconattn.config.flags import TrainingFlags
from deconattn.config.presets import SIZES, size_defaults

BEGIN, END = "<!-- flags: made by python -m deconattn.config.flag_table docs/flags.md -->", "<!-- end of flags -->"


def flag_table() -> str:
    """Return Markdown, a table for each group of flags."""
    parts = []
    for group in dataclasses.fields(TrainingFlags):
        defaults = [getattr(size_defaults(size), group.name) for size in SIZES]
        helps = _docstrings(type(defaults[0]).__name__)
        parts.append(f"**{helps['']}**\n\n| flag | default | |\n| --- | --- | --- |")
        for field in dataclasses.fields(defaults[0]):
            values = {_shown(getattr(default, field.name)) for default in defaults}
            if field.name == "size":
                values = {_shown(defaults[0].size)}
            shown = values.pop() if len(values) == 1 else "by size"
            flag = "--" + field.name.replace("_", "-")
            parts[-1] += f"\n| `{flag}` | {shown} | {helps[field.name]} |"
    return "\n\n".join(parts)


def with_table(page: str) -> str:
    """Return the page with its table made anew (ValueError if the markers are missing)."""
    before, after = page.index(BEGIN) + len(BEGIN), page.index(END)
    return f"{page[:before]}\n\n{flag_table()}\n\n{page[after:]}"


def _docstrings(name: str) -> dict[str, str]:
    """Return docstrings of a configuration class and, by name, of its fields."""
    tree = ast.parse(inspect.getsource(flag_groups))
    body = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name).body
    found = {"": _text(body[0])}
    for field, text in pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            found[field.target.id] = _text(text)
    return found


def _text(node: ast.stmt) -> str:
    assert isinstance(node, ast.Expr)
    assert isinstance(node.value, ast.Constant)
    return " ".join(str(node.value.value).split()).replace("|", "\\|")


def _shown(value: Any) -> str:
    if value is None or value == ():
        return ""
    if isinstance(value, bool):
        return "on" if value else "off"
    return (
        f"{value:,}"
        if isinstance(value, int) and value >= 10_000
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )


if __name__ == "__main__":
    if sys.argv[1:]:
        path = Path(sys.argv[1])
        path.write_text(with_table(path.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print(flag_table())
