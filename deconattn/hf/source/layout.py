"""Layout of the exported file: as `ruff format` at 120 columns, although names have changed in length."""

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterable, Iterator

from deconattn.hf.source.names import Imported

WIDTH = 120
_IMPORTS_WIDTH = 88
"""Width of import statements, which then suit either of the two usual widths."""
_TO_TYPE_CHECKERS = re.compile(r"# type: ignore\b")
_OPEN, _CLOSED = "([{", ")]}"


def import_statements(imports: Iterable[tuple[Imported, str]]) -> str:
    """Return import statements that bind each to a name, merged and sorted: the standard library first."""
    whole: set[tuple[str, str]] = set()
    parts: dict[str, set[str]] = {}
    for imported, name in imports:
        if imported.attribute is not None:
            attribute = imported.attribute
            parts.setdefault(imported.module, set()).add(attribute if name == attribute else f"{attribute} as {name}")
        elif imported.alias == imported.module.split(".")[0] == name:
            whole.add((imported.module, f"import {imported.module}"))
        else:
            whole.add((imported.module, f"import {imported.module} as {name}"))
    statements = [(module, 0, text) for module, text in whole]
    statements += [(module, 1, _from(module, sorted(names, key=_rank))) for module, names in parts.items()]
    groups: dict[bool, list[str]] = {True: [], False: []}
    for module, _, text in sorted(statements, key=lambda one: (one[1], one[0], one[2])):
        groups[module.split(".")[0] in sys.stdlib_module_names].append(f"{text}\n")
    return "\n".join("".join(group) for group in groups.values() if group)


def laid_out(text: str) -> str:
    """Wrap lines that have become too long, join those that fit one line, and drop comments for type checkers."""
    lines = text.splitlines(keepends=True)
    comments = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            if _TO_TYPE_CHECKERS.match(token.string):
                lines[row - 1] = lines[row - 1][:column].rstrip() + "\n"
            else:
                comments.add(row)
    for first, last, is_definition in sorted(_statements(ast.parse(text)), reverse=True):
        if comments.isdisjoint(range(first, last + 1)):
            lines[first - 1 : last] = _fitted(lines[first - 1 : last], is_definition)
    new = "".join(lines)
    assert ast.dump(ast.parse(new)) == ast.dump(ast.parse(text)), "layout changes no code"
    return new


def _statements(tree: ast.Module) -> Iterator[tuple[int, int, bool]]:
    """Yield first and last line of every simple statement and definition's head, and whether it is a head."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            decorated = getattr(node.body[0], "decorator_list", [])
            body = min([node.body[0].lineno, *(one.lineno for one in decorated)])
            if body > node.lineno:
                yield node.lineno, body - 1, True
        elif isinstance(node, ast.stmt) and not hasattr(node, "body") and node.end_lineno is not None:
            yield node.lineno, node.end_lineno, False


def _fitted(lines: list[str], is_definition: bool) -> list[str]:
    if not lines[-1].strip():  # between the head of a class and its first method
        return [*_fitted(lines[:-1], is_definition), lines[-1]]
    joined = _joined(lines)
    if joined is None or (len(lines) == 1 and len(joined) <= WIDTH):
        return lines
    if len(joined) <= WIDTH:
        return [f"{joined}\n"]
    brackets = _outer_brackets(joined)
    if (len(lines) > 1 and max(len(line.rstrip()) for line in lines) <= WIDTH) or not brackets:
        return lines
    start, stop = brackets[0] if is_definition else brackets[-1]
    margin = " " * (len(joined) - len(joined.lstrip()))
    inside = f"{margin}    {joined[start + 1 : stop].strip()}"
    if len(inside) <= WIDTH:
        return [f"{joined[: start + 1]}\n", f"{inside}\n", f"{margin}{joined[stop:]}\n"]
    parts = _parts(joined[start + 1 : stop])
    comma = "," if len(parts) > 1 else ""  # a comprehension is one part, and has none after it
    return [
        f"{joined[: start + 1]}\n",
        *(f"{margin}    {part}{comma}\n" for part in parts),
        f"{margin}{joined[stop:]}\n",
    ]


def _joined(lines: list[str]) -> str | None:
    """Join lines to one; None where a trailing comma or a string of several lines forbids it."""
    joined = lines[0].rstrip()
    for line in lines[1:]:
        line = line.strip()
        if joined.endswith(",") and line[:1] in tuple(_CLOSED):
            return None
        joined += line if joined.endswith(tuple(_OPEN)) or line[:1] in tuple(_CLOSED) else f" {line}"
    return None if any(mark in "".join(lines) for mark in ('"""', "'''", "\\\n")) else joined


def _outer_brackets(line: str) -> list[tuple[int, int]]:
    """Return where outermost, non-empty brackets begin and end."""
    found, depth, start = [], 0, 0
    for place, mark in _marks(line):
        if mark in _OPEN:
            start = place if depth == 0 else start
            depth += 1
        elif mark in _CLOSED:
            depth -= 1
            if depth == 0 and place > start + 1:
                found.append((start, place))
    return found


def _parts(inside: str) -> list[str]:
    """Split at commas that are in no bracket."""
    parts, depth, start = [], 0, 0
    for place, mark in _marks(inside):
        depth += (mark in _OPEN) - (mark in _CLOSED)
        if mark == "," and depth == 0:
            parts.append(inside[start:place].strip())
            start = place + 1
    return [*parts, inside[start:].strip()]


def _marks(line: str) -> Iterator[tuple[int, str]]:
    """Yield brackets and commas outside strings."""
    quoted = ""
    for place, letter in enumerate(line):
        if quoted:
            quoted = "" if letter == quoted and line[place - 1] != "\\" else quoted
        elif letter in "'\"":
            quoted = letter
        elif letter in _OPEN + _CLOSED + ",":
            yield place, letter


def _from(module: str, names: list[str]) -> str:
    statement = f"from {module} import {', '.join(names)}"
    if len(statement) <= _IMPORTS_WIDTH:
        return statement
    return "\n".join([f"from {module} import (", *(f"    {name}," for name in names), ")"])


def _rank(name: str) -> tuple[int, str]:
    """Return the sort key of a name: constants, then classes, then functions."""
    name = name.split(" as ")[0]
    return 0 if name.isupper() else 1 if name[:1].isupper() else 2, name
