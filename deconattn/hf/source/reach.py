"""Reachability: the definitions and methods of package and plugins that a model needs in order to run."""

import ast
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path

from deconattn.errors import UserError
from deconattn.hf.source.module import PACKAGE, Module, Piece, is_ours
from deconattn.hf.source.names import Imported, Use, imports_of
from deconattn.layers.head_parts import mixer_names
from deconattn.mixers import mixer_class
from deconattn.mixers.heads import by_heads
from deconattn.mixers.plugins import code_digest, mixer_digest

AUTO_MAP = {
    "AutoConfig": "DeconAttnConfig",
    "AutoModel": "DeconAttnModel",
    "AutoModelForCausalLM": "DeconAttnForCausalLM",
}
"""Classes of the exported file by transformers' auto class."""
STAND_INS = {
    "deconattn.layers.linear.Linear": "torch.nn.Linear",
    "deconattn.layers.linear.PartedLinear": "deconattn.ops.plain.PartedLinear",
    "deconattn.layers.linear.project": "deconattn.ops.plain.project",
    "deconattn.layers.linear.rows": "operator.getitem",
    "deconattn.layers.norm.residual_norm": "deconattn.layers.norm.plain_residual_norm",
    "deconattn.mixers.registry.known_names": "deconattn.mixers.registry.variant_names",
    "deconattn.mixers.registry.mixer_class": "deconattn.mixers.registry.registered_class",
    "deconattn.mixers.registry.register": "deconattn.mixers.registry.known_as",
    "deconattn.ops.fixed_map.fixed_map_attention": "deconattn.ops.plain.fixed_map_attention",
    "deconattn.ops.prefix_average.prefix_attention": "deconattn.ops.plain.prefix_attention",
    "deconattn.ops.prefix_average.prefix_average": "deconattn.ops.plain.prefix_average",
    "deconattn.ops.rotation.rotate": "deconattn.ops.plain.rotate",
    "deconattn.ops.scored_attention.scored_attention": "deconattn.ops.plain.scored_attention",
    "deconattn.ops.softmax_attention.causal_attention": "deconattn.ops.plain.causal_attention",
    "deconattn.ops.swiglu.swiglu": "deconattn.ops.plain.swiglu",
    "deconattn.ops.taylor_attention.taylor_attention": "deconattn.ops.plain.taylor_attention",
}
"""Replacements in an export for functions that choose the fastest implementation, or check a class."""
_HUGGING_FACE = f"{PACKAGE}.hf."
"""Prefix of modules whose classes Hugging Face calls: these are carried whole."""
_CONTRACT = (f"{PACKAGE}.mixers.base", f"{PACKAGE}.mixers.projected", f"{PACKAGE}.mixers.decoding")
_REGISTER = f"{PACKAGE}.mixers.registry.register"
_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Definition:
    """Top-level name of one of our modules or of a plugin."""

    module: Module
    name: str


@dataclass(frozen=True)
class External:
    """Name bound by import statements of other packages."""

    imports: tuple[Imported, ...]

    @property
    def alias(self) -> str:
        """Name that is bound."""
        return self.imports[0].alias


class Reached:
    """Definitions that the given variants need, found by following names from the model classes.

    Attributes:
        pieces: what is carried, and of which module it is.

    Raises:
        UserError: a plugin that cannot be read or carried, or a variant that no given file registers.
    """

    def __init__(self, variants: Sequence[str], plugins: Sequence[Path]) -> None:
        self.pieces: dict[Piece, Module] = {}
        self._left: dict[Piece, Module] = {}
        """Members of carried classes that nothing has called so far."""
        self._called: set[str] = set()
        self.plugins = _read(plugins)
        self._contract = self._contract_names()

        homes = [_module(f"{_HUGGING_FACE}{name}_deconattn") for name in ("modeling", "configuration")]
        for name in AUTO_MAP.values():
            self._carry(Definition(next(home for home in homes if name in home.defined), name))
        if mixer_names(variants) != tuple(variants):
            self._carry(Definition(_module(by_heads.__module__), by_heads.__name__))
        variants = mixer_names(variants)
        for variant in variants:
            mixer = mixer_class(variant)
            if is_ours(mixer.__module__):
                self._carry(Definition(_module(mixer.__module__), mixer.__name__))
            elif mixer_digest(variant) not in {code_digest(path) for path in plugins}:
                raise UserError(f"variant {variant!r} is of {inspect.getfile(mixer)}: give that file as a plugin")
        registered = {piece: self._variant(plugin, piece) for plugin in self.plugins for piece in plugin.pieces}
        for variant in variants:
            if not is_ours(mixer_class(variant).__module__) and variant not in registered.values():
                raise UserError(f"no plugin names {variant!r} where it registers it: export in a process of its own")
        for plugin in self.plugins:
            for piece in plugin.pieces:
                if registered[piece] in (None, *variants):
                    self._carry_piece(plugin, piece)

    def is_left(self, member: Piece) -> bool:
        """Whether a class is carried without this member."""
        return member in self._left

    def spans(self, piece: Piece) -> Iterator[tuple[int, int]]:
        """Yield the parts of a carried piece's text that are carried."""
        start = piece.start
        for member in piece.members:
            if self.is_left(member):
                yield start, member.start
                start = member.stop
        yield start, piece.stop

    def meaning(self, module: Module, use: Use) -> tuple[Definition | External | None, int]:
        """Resolve a name; None if it is not to be carried; and the number of its attributes that lead there.

        Raises:
            UserError: there is no such thing, or it is a module itself.
        """
        if use.imported is not None:
            return self._found(use.imported, use, module) if is_ours(use.imported.module) else (None, 0)
        if use.name in module.defined:
            return _stand_in(Definition(module, use.name)), 0
        imports = module.imports.get(use.name)
        if imports is None:
            return None, 0
        return self._found(imports[0], use, module) if is_ours(imports[0].module) else (External(tuple(imports)), 0)

    def _found(self, imported: Imported, use: Use, origin: Module) -> tuple[Definition | External, int]:
        dotted, consumed = f"{imported.module}.{imported.attribute}", 0
        while _file(dotted).is_file():
            if consumed == len(use.attributes):
                raise UserError(f"{origin.name}: an export cannot carry {dotted} as an object: name what is used of it")
            dotted = f"{dotted}.{use.attributes[consumed]}"
            consumed += 1
        return _resolved(dotted, origin.name), consumed

    def _carry(self, target: Definition) -> None:
        for piece in target.module.defined[target.name]:
            self._carry_piece(target.module, piece)

    def _carry_piece(self, module: Module, piece: Piece) -> None:
        if piece in self.pieces:
            return
        self.pieces[piece] = module
        optional = self._optional(module, piece)
        self._left |= {member: module for member in optional if self._called.isdisjoint(member.names)}
        for start, stop in [*self.spans(piece)]:
            self._look(module, start, stop)

    def _look(self, module: Module, start: int, stop: int) -> None:
        """Carry what a carried text uses."""
        called = module.attributes(start, stop)
        for use in module.uses(start, stop):
            target, consumed = self.meaning(module, use)
            called += use.attributes[consumed:]
            if isinstance(target, Definition):
                self._carry(target)
        self._called.update(called)
        for member in [member for member in self._left if not self._called.isdisjoint(member.names)]:
            owner = self._left.pop(member, None)
            if owner is not None:
                self._look(owner, member.start, member.stop)

    def _optional(self, module: Module, piece: Piece) -> list[Piece]:
        """Return the members of a class that are carried only where something calls them by name."""
        members = [member for member in piece.members if member.names and not _is_field(member.node)]
        if module in self.plugins:  # which may call its own in ways that cannot be seen
            return [member for member in members if self._contract.issuperset(member.names)]
        if module.name.startswith(_HUGGING_FACE):
            return []
        foreign = _foreign_names(module.name, piece.names[0]) if members else set()
        return [member for member in members if not any(_is_magic(name) or name in foreign for name in member.names)]

    def _contract_names(self) -> set[str]:
        """Return the members of a mixer that the package, and not PyTorch, calls."""
        homes = [(home, piece) for home in map(_module, _CONTRACT) for piece in home.pieces if piece.members]
        return {name for home, piece in homes for member in self._optional(home, piece) for name in member.names}

    def _variant(self, plugin: Module, piece: Piece) -> str | None:
        """Return the name under which a piece registers a mixer, None where it does not."""
        for decorator in getattr(piece.node, "decorator_list", []):
            if isinstance(decorator, ast.Call) and decorator.args and isinstance(decorator.args[0], ast.Constant):
                for use in plugin.uses(*plugin.names.span(decorator.func)):
                    if self.meaning(plugin, use)[0] == _resolved(_REGISTER, plugin.name):
                        return str(decorator.args[0].value)
        return None


def _resolved(dotted: str, origin: str) -> Definition | External:
    """Resolve a dotted name of ours through re-exports and stand-ins."""
    home, name = dotted.rsplit(".", 1)
    if not is_ours(home):
        return External((Imported(home, name, name),))
    if not _file(home).is_file():
        raise UserError(f"{origin}: there is no module {home} to export")
    module = _module(home)
    if name in module.defined:
        return _stand_in(Definition(module, name))
    if name not in module.imports:
        raise UserError(f"{origin}: there is no {name} in {home} to export")
    imported = module.imports[name][0]
    if not is_ours(imported.module):
        return External((imported,))
    return _resolved(f"{imported.module}.{imported.attribute}", origin)


def _stand_in(target: Definition) -> Definition | External:
    other = STAND_INS.get(f"{target.module.name}.{target.name}")
    return target if other is None else _resolved(other, target.module.name)


@cache
def _module(name: str) -> Module:
    return Module(name, _file(name).read_text(encoding="utf-8"))


def _file(module: str) -> Path:
    path = _ROOT.joinpath(*module.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _read(plugins: Sequence[Path]) -> list[Module]:
    names = [path.stem for path in plugins]
    modules = []
    for path in plugins:
        if names.count(path.stem) > 1:
            raise UserError(f"two plugins are called {path.name}: rename one")
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"plugin {path} cannot be read ({error}): give back the file that the run used") from None
        module = Module(str(path), text)
        inner = [one for scope in module.names.inner_imports for one in imports_of(scope)]
        for imported in (*(one for several in module.imports.values() for one in several), *inner):
            dotted = f"{imported.module}.{imported.attribute}"
            if is_ours(imported.module) and not _file(dotted).is_file():
                _resolved(dotted, module.name)  # raises where there is no such thing
        modules.append(module)
    return modules


@cache
def _foreign_names(module: str, name: str) -> set[str]:
    """Return names that other packages may call on a class of ours: those of foreign bases, its subclasses' too."""
    heirs = [getattr(import_module(module), name)]
    for heir in heirs:
        heirs += [one for one in heir.__subclasses__() if is_ours(one.__module__)]
    bases = {base for heir in heirs for base in heir.__mro__ if not is_ours(base.__module__)}
    return {known for base in bases for known in vars(base)}


def _is_field(node: ast.stmt) -> bool:
    """Whether a statement declares a dataclass field."""
    return isinstance(node, ast.AnnAssign) and "ClassVar" not in ast.unparse(node.annotation)


def _is_magic(name: str) -> bool:
    return name.startswith("__") and name.endswith("__")
