"""The model's source code as an export carries it: the package's own files, flattened into one folder.

transformers loads code that lies beside the weights, but follows only `from .name import ...` between files of
one flat folder. So `deconattn.model.decoder` becomes `model_decoder.py`, and the imports between the files are
rewritten; nothing else is.
"""

import ast
import re
from collections.abc import Sequence
from pathlib import Path

from deconattn.errors import UserError

PACKAGE = "deconattn"
ENTRY = f"{PACKAGE}.hf.modeling_deconattn"
_ROOT = Path(__file__).resolve().parents[1]


def exported_source(plugins: Sequence[Path] = ()) -> dict[str, str]:
    """File name -> source of everything that the exported model needs, plugin files included.

    Raises:
        UserError: a plugin cannot be read, or imports in a way that does not survive flattening.
    """
    files: dict[str, str] = {}
    pending = [ENTRY]
    registrations = ""
    for path in plugins:
        name = "plugin_" + re.sub(r"\W", "_", path.stem)
        if f"{name}.py" in files:
            raise UserError(f"two plugins are called {path.name}: rename one")
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"plugin {path} cannot be read ({error}): give back the file that the run used") from None
        files[f"{name}.py"], needed = _rewrite(text, str(path))
        pending += needed
        registrations += f"from .{name} import __name__ as _{name}  # noqa: E402  (registers its variants)\n"
    while pending:
        module = pending.pop()
        file_name = f"{_flat(module)}.py"
        if file_name in files:
            continue
        text, needed = _rewrite(_file(module).read_text(encoding="utf-8"), module)
        files[file_name] = f"# {module} of DeconAttn, as exported with the model.\n{text}"
        pending += needed
    if registrations:
        files[f"{_flat(ENTRY)}.py"] += f"\n{registrations}"
    return dict(sorted(files.items()))


def _flat(module: str) -> str:
    return module.removeprefix(f"{PACKAGE}.").removeprefix("hf.").replace(".", "_")


def _file(module: str) -> Path:
    path = _ROOT.joinpath(*module.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _rewrite(text: str, origin: str) -> tuple[str, list[str]]:
    """The source with its imports of the package made relative, and the modules that it imports."""
    needed: list[str] = []
    lines = text.splitlines(keepends=True)
    nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import | ast.ImportFrom)]
    for node in sorted(nodes, key=lambda node: node.lineno, reverse=True):
        if isinstance(node, ast.Import):
            if any(alias.name.split(".")[0] == PACKAGE for alias in node.names):
                raise UserError(f"{origin}: write `from {PACKAGE}... import ...`, an export cannot carry `import`")
        elif node.level:
            raise UserError(f"{origin}: a plugin is one file, an export cannot carry its relative imports")
        elif node.module is not None and node.module.split(".")[0] == PACKAGE:
            replacement, modules = _relative(node, origin)
            needed += modules
            indent = lines[node.lineno - 1][: node.col_offset]
            assert node.end_lineno is not None
            if indent.strip() or lines[node.end_lineno - 1][node.end_col_offset :].lstrip()[:1] == ";":
                raise UserError(f"{origin}: put the import of {node.module} on a line of its own")
            rest = lines[node.end_lineno - 1][node.end_col_offset :]
            new = "".join(f"{indent}{line}\n" for line in replacement)
            lines[node.lineno - 1 : node.end_lineno] = [new[:-1] + rest]
    return "".join(lines), needed


def _relative(node: ast.ImportFrom, origin: str) -> tuple[list[str], list[str]]:
    """The statements for one import, and the modules that they load."""
    assert node.module is not None
    statements, modules, plain = [], [], []
    for alias in node.names:
        module = f"{node.module}.{alias.name}"
        if _file(module).is_file():
            # A module by itself: `from . import x` is a form that transformers does not follow, hence the first line.
            flat = _flat(module)
            statements.append(f"from .{flat} import __name__ as _{flat}")
            statements.append(f"from . import {flat} as {alias.asname or alias.name}")
            modules.append(module)
        else:
            plain.append(alias.name if alias.asname is None else f"{alias.name} as {alias.asname}")
    if plain:
        if not _file(node.module).is_file():
            raise UserError(f"{origin}: there is no module {node.module} to export")
        statements.insert(0, f"from .{_flat(node.module)} import {', '.join(plain)}")
        modules.append(node.module)
    return statements, modules
