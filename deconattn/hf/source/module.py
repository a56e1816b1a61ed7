"""Python files cut into their top-level definitions, each with its comments and the names that it uses."""

import ast
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from deconattn.errors import UserError
from deconattn.hf.source.names import Comprehension, Imported, Names, Use, imports_of

PACKAGE = "deconattn"


def is_ours(module: str) -> bool:
    """Whether a module is the package's."""
    return module.split(".")[0] == PACKAGE


@dataclass(eq=False)
class Piece:
    """Consecutive lines of a file: one statement of the top level or of a class, with the comments above it.

    What is a string on its own below an assignment, its documentation, belongs to it.

    Attributes:
        start, stop: bytes of the file's text; whole lines.
        names: what it defines.
        gap: empty lines above it.
        members: of a class, the pieces of its body.
        node: the statement, the first where a line has several.
    """

    start: int
    stop: int
    names: tuple[str, ...]
    gap: int
    node: ast.stmt
    members: list["Piece"] = field(default_factory=list)

    @property
    def is_block(self) -> bool:
        """Whether it is a function or a class, which empty lines set apart."""
        return isinstance(self.node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)

    @property
    def is_text(self) -> bool:
        """Whether it is a docstring."""
        return _is_text(self.node)


class Module:
    """Parsed file.

    Attributes:
        name: dotted, or a plugin's path.
        text: of the file, UTF-8.
        imports: name -> what the top level imports under it.
        pieces: the definitions, in order, without docstring and imports.
        names: the names that the pieces use.

    Raises:
        UserError: not Python, or imports that one file cannot carry.
    """

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.text = text.encode()
        try:
            self._tree = ast.parse(self.text)
        except SyntaxError as error:
            raise UserError(f"{name}: line {error.lineno} is no Python ({error.msg}): correct it") from None
        self._lines = self.text.splitlines(keepends=True)
        self.names = Names(self.text)
        self.imports: dict[str, list[Imported]] = {}
        statements = self._without_imports(self._tree.body)
        self.pieces = [piece for piece in self._cut(self._tree.body, statements) if not piece.is_text]
        for piece in self.pieces:
            if isinstance(piece.node, ast.ClassDef) and piece.node.body[0].lineno > piece.node.lineno:
                piece.members = self._cut(piece.node.body, piece.node.body)
        for statement in statements:
            self.names.visit(statement)
        for node in self.names.inner_imports:
            self._check(node)
            if not self.stands_alone(node):
                raise UserError(f"{name}: put the import in line {node.lineno} on a line of its own")
        for node in self.names.conditional_imports:
            self._check(node)
            if isinstance(node, ast.ImportFrom) and is_ours(node.module or ""):
                raise UserError(f"{name}: line {node.lineno} imports {node.module} conditionally: do so at the top")

    @property
    def stem(self) -> str:
        """Last part of the module's name, as an identifier."""
        last = self.name.rsplit(".", 1)[1] if is_ours(self.name) else Path(self.name).stem
        return re.sub(r"\W", "_", last)

    @property
    def documentation(self) -> str:
        """Docstring of the module, empty where there is none."""
        return ast.get_docstring(self._tree) or ""

    @cached_property
    def defined(self) -> dict[str, list[Piece]]:
        """Pieces that define each name."""
        found: dict[str, list[Piece]] = {}
        for piece in self.pieces:
            for name in piece.names:
                found.setdefault(name, []).append(piece)
        return found

    def uses(self, start: int, stop: int) -> list[Use]:
        """Return the top-level names that are used in a part of the text."""
        return [use for use in self.names.uses if start <= use.start < stop]

    def attributes(self, start: int, stop: int) -> list[str]:
        """Return names of the attributes that are read in a part of the text."""
        return [name for place, name in self.names.attributes if start <= place < stop]

    def line_span(self, node: ast.stmt) -> tuple[int, int]:
        """Return first and last byte of the lines that a statement is on."""
        first, last = _first_line(node), node.end_lineno
        assert last is not None
        return self.names.place(first, 0), self.names.place(last, 0) + len(self._lines[last - 1])

    def is_only_statement(self, node: ast.stmt) -> bool:
        """Whether a statement is the only one of a block, a docstring aside."""
        for block in ast.walk(self._tree):
            for body in (getattr(block, part, None) for part in ("body", "orelse", "finalbody")):
                if isinstance(body, list) and node in body:
                    return len(body) == 1
        return False

    def stands_alone(self, node: ast.stmt) -> bool:
        """Whether nothing but a comment shares a statement's lines."""
        (start, stop), (first, last) = self.names.span(node), self.line_span(node)
        after = self.text[stop:last].strip()
        return not self.text[first:start].strip() and (not after or after.startswith(b"#"))

    def _without_imports(self, body: Sequence[ast.stmt]) -> list[ast.stmt]:
        """Record the imports of the top level and return the other statements."""
        kept: list[ast.stmt] = []
        for node in body:
            if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
                inner = [one for one in node.body if isinstance(one, ast.Import | ast.ImportFrom)]
                if len(inner) < len(node.body) or node.orelse:
                    raise UserError(
                        f"{self.name}: an export carries only imports under `if TYPE_CHECKING`: move others"
                    )
                for one in inner:
                    self._note(one, for_types=True)
            elif isinstance(node, ast.Import | ast.ImportFrom):
                self._note(node, for_types=False)
            else:
                kept.append(node)
        return kept

    def _note(self, node: ast.Import | ast.ImportFrom, for_types: bool) -> None:
        self._check(node)
        if not self.stands_alone(node):
            raise UserError(f"{self.name}: put the import in line {node.lineno} on a line of its own")
        for imported in imports_of(node, for_types):
            self.imports.setdefault(imported.alias, []).append(imported)

    def _check(self, node: ast.Import | ast.ImportFrom) -> None:
        if isinstance(node, ast.Import):
            if any(is_ours(alias.name) for alias in node.names):
                raise UserError(
                    f"{self.name}: write `from {PACKAGE}... import ...`, an export cannot carry `import {PACKAGE}`"
                )
        elif node.level:
            raise UserError(f"{self.name}: a plugin is one file, an export cannot carry its relative imports")
        elif any(alias.name == "*" for alias in node.names):
            raise UserError(f"{self.name}: name what is imported from {node.module}, an export cannot carry `*`")

    def _cut(self, body: Sequence[ast.stmt], kept: Sequence[ast.stmt]) -> list[Piece]:
        """Cut the kept statements of a body into pieces, which cover all lines between them."""
        groups: list[list[ast.stmt]] = []
        for node in body:
            last = groups[-1][-1] if groups else None
            if last is not None and (_first_line(node) <= (last.end_lineno or 0) or _documents(node, groups[-1][0])):
                groups[-1].append(node)
            else:
                groups.append([node])
        pieces, previous = [], None
        for group in groups:
            start, _ = self.line_span(group[0])
            _, stop = self.line_span(group[-1])
            gap = 0
            if previous is not None:
                between = self.text[previous:start].decode().splitlines(keepends=True)
                while between and not between[0].strip():
                    gap += 1
                    between.pop(0)
                while between and not between[-1].strip():
                    between.pop()
                comments = "".join(between)
                if comments:
                    start = self.text.index(comments.encode(), previous)
            previous = stop
            if group[0] in kept:
                pieces.append(Piece(start, stop, _names(group), min(gap, 2), group[0]))
        return pieces


def _first_line(node: ast.stmt) -> int:
    decorators = getattr(node, "decorator_list", [])
    return min([node.lineno, *(decorator.lineno for decorator in decorators)])


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _documents(node: ast.stmt, above: ast.stmt) -> bool:
    return _is_text(node) and isinstance(above, ast.Assign | ast.AnnAssign)


def _names(group: Sequence[ast.stmt]) -> tuple[str, ...]:
    """Return the names that statements bind, those within compound ones (`try`, `if`) included."""
    found: dict[str, None] = {}

    def look(node: ast.AST) -> None:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found[node.name] = None
        elif isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            found[node.id] = None
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found.update({one.alias: None for one in imports_of(node)})
        elif not isinstance(node, ast.Lambda | Comprehension):
            for child in ast.iter_child_nodes(node):
                look(child)

    for node in group:
        look(node)
    return tuple(found)
