"""Resolution of names in a piece of Python: those of the module's top level, and a function's own."""

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

_Function = ast.FunctionDef | ast.AsyncFunctionDef
Comprehension = ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp


@dataclass(frozen=True)
class Imported:
    """Target of an import statement: a module, or (`attribute`) something of it.

    Attributes:
        alias: the name that it binds; of `import a.b` that is `a`.
        for_types: imported under `if TYPE_CHECKING`.
    """

    module: str
    attribute: str | None
    alias: str
    for_types: bool = False


@dataclass(frozen=True)
class Use:
    """Use of a top-level name in a module's text, with the attributes that are read of it.

    Attributes:
        start: where it is, in bytes of the module's text.
        stops: where the name ends, and each of the attributes.
        imported: what it is where a function imports it itself.
        taken: names that mean something else here, because a function around has them.
    """

    start: int
    stops: tuple[int, ...]
    name: str
    attributes: tuple[str, ...] = ()
    imported: Imported | None = None
    taken: frozenset[str] = frozenset()


@dataclass(frozen=True)
class _Scope:
    names: dict[str, Imported | None]
    is_class: bool = False


class Names(ast.NodeVisitor):
    """Visitor that collects the uses of top-level names in statements.

    Attributes:
        uses: the names of the top level.
        attributes: (place, name) of what is taken of anything else, `getattr` with a constant included.
        inner_imports: import statements of functions.
        conditional_imports: those in other statements, `try` for example.
    """

    def __init__(self, text: bytes) -> None:
        self.uses: list[Use] = []
        self.attributes: list[tuple[int, str]] = []
        self.inner_imports: list[ast.ImportFrom | ast.Import] = []
        self.conditional_imports: list[ast.ImportFrom | ast.Import] = []
        self._text = text
        self._lines = [0]
        for line in text.splitlines(keepends=True):
            self._lines.append(self._lines[-1] + len(line))
        self._scopes: list[_Scope] = []

    def place(self, line: int, column: int) -> int:
        """Return the byte offset of a place in a syntax tree."""
        return self._lines[line - 1] + column

    def span(self, node: ast.expr | ast.stmt) -> tuple[int, int]:
        """Return first and last byte of a node."""
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return self.place(node.lineno, node.col_offset), self.place(node.end_lineno, node.end_col_offset)

    def visit_Name(self, node: ast.Name) -> None:
        start, stop = self.span(node)
        self._use(node.id, start, (stop,), ())

    def visit_Attribute(self, node: ast.Attribute) -> None:
        chain: list[ast.Attribute] = []
        value: ast.expr = node
        while isinstance(value, ast.Attribute):
            chain.insert(0, value)
            value = value.value
        names = tuple(one.attr for one in chain)
        if isinstance(value, ast.Name):
            start, stop = self.span(value)
            if self._use(value.id, start, (stop, *(self.span(one)[1] for one in chain)), names):
                return
        self.attributes += [(self.span(one)[0], one.attr) for one in chain]
        self.visit(value)

    def visit_Call(self, node: ast.Call) -> None:
        if isinstance(node.func, ast.Name) and node.func.id in ("getattr", "setattr", "hasattr", "delattr"):
            names = (one for one in node.args[1:2] if isinstance(one, ast.Constant) and isinstance(one.value, str))
            self.attributes += [(self.span(one)[0], str(one.value)) for one in names]
        self.generic_visit(node)

    def visit_FunctionDef(self, node: _Function) -> None:
        self._defined(node)
        for decorator in node.decorator_list:
            self.visit(decorator)
        self._scopes.append(_Scope({one.name: None for one in _type_parameters(node)}))
        for argument in _arguments(node.args):
            self._annotation(argument.annotation)
        self._annotation(node.returns)
        for default in (*node.args.defaults, *node.args.kw_defaults):
            if default is not None:
                self.visit(default)
        self._within(_Scope(_bound(node.body) | {one.arg: None for one in _arguments(node.args)}), node.body)
        self._scopes.pop()

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_Lambda(self, node: ast.Lambda) -> None:
        for default in (*node.args.defaults, *node.args.kw_defaults):
            if default is not None:
                self.visit(default)
        self._within(_Scope({one.arg: None for one in _arguments(node.args)}), [node.body])

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._defined(node)
        for decorator in node.decorator_list:
            self.visit(decorator)
        self._scopes.append(_Scope({one.name: None for one in _type_parameters(node)}))
        for base in (*node.bases, *node.keywords):
            self.visit(base)
        self._within(_Scope(_bound(node.body), is_class=True), node.body)
        self._scopes.pop()

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self.visit(node.target)
        self._annotation(node.annotation)
        if node.value is not None:
            self.visit(node.value)

    def visit_Global(self, node: ast.Global) -> None:
        start, stop = self.span(node)
        for name in node.names:
            self._use_word(name, start + len("global"), stop)

    def visit_Import(self, node: ast.Import | ast.ImportFrom) -> None:
        (self.inner_imports if self._scopes else self.conditional_imports).append(node)

    visit_ImportFrom = visit_Import

    def _comprehension(self, node: Comprehension) -> None:
        self.visit(node.generators[0].iter)
        targets = _bound([one.target for one in node.generators])
        results = [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]
        later = [one.iter for one in node.generators[1:]]
        conditions = [condition for one in node.generators for condition in one.ifs]
        self._within(_Scope(targets), [*(one.target for one in node.generators), *later, *conditions, *results])

    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = _comprehension

    def _within(self, scope: _Scope, nodes: Iterable[ast.AST]) -> None:
        self._scopes.append(scope)
        for node in nodes:
            self.visit(node)
        self._scopes.pop()

    def _annotation(self, node: ast.expr | None) -> None:
        """Visit an annotation, which may be a string or contain one."""
        if node is None:
            return
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            start, value = self.span(node)[0] + 1, node.value.encode()
            if self._text[start : start + len(value)] != value:
                return
            try:
                quoted = Names(value)
                quoted._scopes = self._scopes
                quoted._annotation(ast.parse(value, mode="eval").body)
            except SyntaxError:
                return
            for use in quoted.uses:
                stops = tuple(start + stop for stop in use.stops)
                self.uses.append(Use(start + use.start, stops, use.name, use.attributes, use.imported, use.taken))
        elif isinstance(node, ast.Subscript) and not ast.unparse(node.value).endswith("Literal"):
            self._annotation(node.value)
            self._annotation(node.slice)
        elif isinstance(node, ast.BinOp):
            self._annotation(node.left)
            self._annotation(node.right)
        elif isinstance(node, ast.Tuple | ast.List):
            for element in node.elts:
                self._annotation(element)
        else:
            self.visit(node)

    def _defined(self, node: _Function | ast.ClassDef) -> None:
        """Record the name of a function or class, which a syntax tree does not place."""
        self._use_word(node.name, self.span(node)[0] + len("def"), self.span(node)[1])

    def _use_word(self, name: str, start: int, stop: int) -> None:
        tail = self._text[start:stop]
        at = start + next(i for i, _ in _words(tail, name.encode()))
        self._use(name, at, (at + len(name.encode()),), ())

    def _use(self, name: str, start: int, stops: tuple[int, ...], attributes: tuple[str, ...]) -> bool:
        """Record a use, if the name is of the top level."""
        scopes = [scope for index, scope in enumerate(reversed(self._scopes)) if not (scope.is_class and index)]
        scope = next((scope for scope in scopes if name in scope.names), None)
        if scope is not None and scope.names[name] is None:
            return False
        taken = frozenset(known for one in scopes for known, what in one.names.items() if what is None)
        self.uses.append(Use(start, stops, name, attributes, None if scope is None else scope.names[name], taken))
        return True


def imports_of(node: ast.Import | ast.ImportFrom, for_types: bool = False) -> Iterator[Imported]:
    """Yield what an import statement binds."""
    for alias in node.names:
        if isinstance(node, ast.ImportFrom):
            yield Imported(node.module or "", alias.name, alias.asname or alias.name, for_types)
        else:
            yield Imported(alias.name, None, alias.asname or alias.name.split(".")[0], for_types)


def _bound(nodes: Iterable[ast.AST]) -> dict[str, Imported | None]:
    """Return names local to a function or class, and their targets where it imports them."""
    found: dict[str, Imported | None] = {}
    globals_: set[str] = set()

    def look(node: ast.AST, in_comprehension: bool = False) -> None:
        if isinstance(node, ast.Import | ast.ImportFrom):
            found.update({one.alias: one for one in imports_of(node)})
        elif isinstance(node, _Function | ast.ClassDef):
            found[node.name] = None
            return
        elif isinstance(node, ast.Lambda):
            return
        elif isinstance(node, ast.Global):
            globals_.update(node.names)
        elif isinstance(node, ast.NamedExpr):
            found[node.target.id] = None
        elif isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load) and not in_comprehension:
            found[node.id] = None
        elif isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
            found[node.name] = None
        elif isinstance(node, ast.MatchMapping) and node.rest:
            found[node.rest] = None
        in_comprehension = in_comprehension or isinstance(node, Comprehension)
        for child in ast.iter_child_nodes(node):
            look(child, in_comprehension)

    for node in nodes:
        look(node)
    return {name: what for name, what in found.items() if name not in globals_}


def _arguments(arguments: ast.arguments) -> list[ast.arg]:
    several = [one for one in (arguments.vararg, arguments.kwarg) if one is not None]
    return [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, *several]


def _type_parameters(node: _Function | ast.ClassDef) -> list[Any]:  # since Python 3.12
    return getattr(node, "type_params", [])


def _words(text: bytes, word: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield where `word` stands by itself."""
    start = text.find(word)
    while start >= 0:
        before, after = text[start - 1 : start], text[start + len(word) : start + len(word) + 1]
        if not (before.isalnum() or before == b"_" or after.isalnum() or after == b"_"):
            yield start, word
        start = text.find(word, start + 1)
