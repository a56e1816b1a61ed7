"""Writer of the exported file: the pieces that a model needs, in an order to read from the top down."""

import ast
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from textwrap import indent, wrap

from deconattn.hf.source.layout import WIDTH, import_statements, laid_out
from deconattn.hf.source.module import PACKAGE, Module, Piece, is_ours
from deconattn.hf.source.reach import Definition, External, Reached

FILE_NAME = "modeling_deconattn.py"
_ROOMS = ("errors", "ops", "mixers", "plugins", "model", "hf")
"""Rooms in reading order; what one needs of a later one stands before it all the same."""
_ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):`([^`]+)`")
_HEADER = '''\
# Made by DeconAttn {version} from its own source, for the layers of one model; there is no other copy of it to edit.
# Modules: {modules}.
# Copyright (c) 2026 The DeconAttn authors. SPDX-License-Identifier: MIT{plugins}
"""A DeconAttn model for Hugging Face transformers: its configuration, its layers, its classes.

Variants: {variants}.

Plain PyTorch: it runs wherever transformers does, and trains by autograd. With the deconattn package installed and
imported, transformers runs the package's classes in the place of these, with its fused kernels.
"""
'''


def modeling_source(variants: Iterable[str], plugins: Sequence[Path] = ()) -> str:
    """Return the file for a model whose layers have these variants.

    Args:
        plugins: the files that register variants of third parties; they must be loaded in this process.

    Raises:
        UserError: a plugin cannot be read, or is written in a way that one file cannot carry, or a variant is
            registered by no file that was given.
    """
    variants = sorted(set(variants))
    return _Writer(Reached(variants, plugins)).text(variants)


class _Writer:
    def __init__(self, reached: Reached) -> None:
        self._reached = reached
        self._uses = [
            (module, use, *reached.meaning(module, use))
            for piece, module in reached.pieces.items()
            for start, stop in reached.spans(piece)
            for use in module.uses(start, stop)
        ]
        self._modules = self._in_order()
        self._names = self._chosen_names()

    def text(self, variants: Sequence[str]) -> str:
        plugins = "".join(f"\n# The code of {self._title(plugin)} is its author's." for plugin in self._reached.plugins)
        names = wrap(", ".join(map(self._title, self._modules)), WIDTH - 11)
        header = _HEADER.format(
            version=version(PACKAGE), modules="\n#     ".join(names), plugins=plugins, variants=", ".join(variants)
        )
        sections = "\n\n".join(map(self._section, self._modules))
        return laid_out("\n".join([header, self._imports(), sections]))

    def _in_order(self) -> list[Module]:
        """Sort the modules that have something to carry: each after those that its top level needs."""
        needs: dict[Module, set[Module]] = {module: set() for module in self._reached.pieces.values()}
        for module, use, target, _ in self._uses:
            if not isinstance(target, Definition) or target.module is module or use.imported is not None:
                continue
            if not module.imports[use.name][0].for_types:
                needs[module].add(target.module)
        ordered: dict[Module, None] = {}

        def visit(module: Module) -> None:
            if module not in visited:
                visited.add(module)
                for needed in sorted(needs[module], key=self._place):
                    visit(needed)
                ordered[module] = None

        visited: set[Module] = set()
        for module in sorted(needs, key=self._place):
            visit(module)
        return list(ordered)

    def _place(self, module: Module) -> tuple[int, str]:
        room = module.name.split(".")[1] if is_ours(module.name) else "plugins"
        return _ROOMS.index(room) if room in _ROOMS else len(_ROOMS), module.name

    def _title(self, module: Module) -> str:
        return module.name if is_ours(module.name) else f"plugin {Path(module.name).name}"

    def _chosen_names(self) -> dict[Definition | External, str]:
        """Choose the name in the file of everything that is carried or imported."""
        pieces = self._reached.pieces.items()
        names: dict[Definition | External, str] = {
            Definition(module, name): name for piece, module in pieces for name in piece.names
        }
        names |= {target: target.alias for _, _, target, _ in self._uses if isinstance(target, External)}
        through = {target for _, _, target, consumed in self._uses if consumed and isinstance(target, Definition)}
        through -= {
            target for module, use, target, consumed in self._uses if not consumed and use.name in module.imports
        }
        longer = {target: self._longer(target) for target in names}
        unclear: set[Definition | External] = set(through)
        while unclear:
            for target in unclear:
                names[target] = longer[target] if names[target] != longer[target] else f"{names[target]}_"
            unclear = {target for _, use, target, _ in self._uses if target and names[target] in use.taken}
            for name in {name for name, count in Counter(names.values()).items() if count > 1}:
                unclear |= self._to_rename([target for target, known in names.items() if known == name])
        return names

    def _to_rename(self, targets: Sequence[Definition | External]) -> set[Definition | External]:
        """Return those of several with one name to rename: a plugin's, else all that are ours, else not the first."""
        modules = {target: target.module.name for target in targets if isinstance(target, Definition)}
        plugins = {target for target, name in modules.items() if not is_ours(name)}
        return set(plugins if 0 < len(plugins) < len(targets) else modules or targets[1:])

    def _longer(self, target: Definition | External) -> str:
        """Return a name with its module's before it."""
        if isinstance(target, External):
            return f"{target.imports[0].module.replace('.', '_')}_{target.alias}"
        name, stem = target.name, self._stem(target.module)
        core = name.lstrip("_")
        if core.isupper():
            stem = f"{stem.upper()}_"
        elif core[:1].isupper():
            stem = "".join(part.capitalize() for part in stem.split("_"))
        else:
            stem = f"{stem}_"
        return f"{name[: len(name) - len(core)]}{stem}{core}"

    def _stem(self, module: Module) -> str:
        """Return the end of a module's name that no other one has."""
        parts = module.name.split(".") if is_ours(module.name) else [module.stem]
        others = [other.name for other in self._modules if other is not module]
        for count in range(1, len(parts)):
            if not any(other.endswith("." + ".".join(parts[-count:])) for other in others):
                return "_".join(parts[-count:])
        return "_".join(parts)

    def _imports(self) -> str:
        found = {target for _, _, target, _ in self._uses if isinstance(target, External)}
        needed = {
            target
            for module, use, target, _ in self._uses
            if isinstance(target, External)
            and not (use.name in module.imports and module.imports[use.name][0].for_types)
        }
        text = import_statements((one, self._names[target]) for target in needed for one in target.imports)
        only_types = found - needed
        if only_types:
            inner = import_statements((one, self._names[target]) for target in only_types for one in target.imports)
            text += "\nif TYPE_CHECKING:\n" + indent(inner, "    ")
        return text

    def _section(self, module: Module) -> str:
        documentation = self._without_roles(module.documentation, module)
        lines = [f"# {line}".rstrip() for line in documentation.splitlines()]
        head = "\n".join([f"# ---- {self._title(module)} ".ljust(WIDTH, "-"), *lines, ""])
        parts, previous = [head], None
        for piece in module.pieces:
            if piece in self._reached.pieces:
                gap = 2 if piece.is_block or previous is None or previous.is_block else piece.gap
                parts.append("\n" * gap + self._text_of(module, piece))
                previous = piece
        return "".join(parts)

    def _text_of(self, module: Module, piece: Piece) -> str:
        edits = self._without_members(module, piece) + self._without_inner_imports(module, piece)
        for start, stop in self._reached.spans(piece):
            for use in module.uses(start, stop):
                target, consumed = self._reached.meaning(module, use)
                if target is not None:
                    edits.append((use.start, use.stops[consumed], self._names[target]))
        parts, place = [], piece.start
        for start, stop, text in sorted(edits):
            parts += [module.text[place:start].decode(), text]
            place = stop
        parts.append(module.text[place : piece.stop].decode())
        return self._without_roles("".join(parts), module)

    def _without_members(self, module: Module, piece: Piece) -> list[tuple[int, int, str]]:
        kept = [member for member in piece.members if not self._reached.is_left(member)]
        if len(kept) == len(piece.members):
            return []
        first = piece.members[0]
        if not kept:
            return [(first.start, piece.stop, " " * first.node.col_offset + "pass\n")]
        edits, previous = [], None
        for member in kept:
            start = first.start if previous is None else previous.stop
            before = piece.members.index(member)
            if before and piece.members[before - 1] is not previous:
                apart = previous is not None and (member.is_block or previous.is_block or previous.is_text)
                edits.append((start, member.start, "\n" * max(member.gap, 1) if apart else ""))
            previous = member
        return [*edits, (kept[-1].stop, piece.stop, "")]

    def _without_inner_imports(self, module: Module, piece: Piece) -> list[tuple[int, int, str]]:
        edits = []
        for node in module.names.inner_imports:
            start, stop = module.line_span(node)
            carried = any(first <= start < last for first, last in self._reached.spans(piece))
            if not carried or not isinstance(node, ast.ImportFrom) or not is_ours(node.module or ""):
                continue
            if module.is_only_statement(node):
                edits.append((start, stop, " " * node.col_offset + "pass\n"))
                continue
            if module.text[:start].rstrip(b" ").endswith((b":\n", b"\n\n")):
                stop += len(module.text[stop:]) - len(module.text[stop:].lstrip(b"\n"))
            edits.append((start, stop, ""))
        return edits

    def _without_roles(self, text: str, module: Module) -> str:
        """Replace references in documentation by the names in the file."""

        def plain(match: re.Match[str]) -> str:
            for target, name in self._names.items():
                if isinstance(target, Definition):
                    dotted = f"{target.module.name}.{target.name}"
                    if match[1] == dotted or match[1].startswith(f"{dotted}."):
                        return f"`{name}{match[1].removeprefix(dotted)}`"
            return f"`{match[1]}`"

        return _ROLE.sub(plain, text)
