"""Hook of MkDocs: makes pages of what lies outside docs/ and is linked from there, so that no link leaves the site.

README.md is the first page. A linked Markdown file is a page, a notebook a page with its outputs, a source file a page
with its text, a folder a list of what is in it; anything else is copied. Links are rewritten from the repository's
folders to the site's, and one that leads nowhere is left for `mkdocs build --strict` to refuse.
"""

import ast
import json
import logging
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
ALWAYS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md", "benchmarks/LOG.md")
"""What navigation names, linked or not."""
LANGUAGES = {".py": "python", ".sh": "bash", ".sbatch": "bash", ".toml": "toml", ".yml": "yaml", "": "text"}
LINK = re.compile(r"(?<=\]\()([^)\s]+)(?=\))")
CODE = re.compile(r"(^```.*?^```\s*?$)", re.MULTILINE | re.DOTALL)
UNSEARCHED = "---\nsearch:\n  exclude: true\n---\n"
log = logging.getLogger("mkdocs.hooks.repository_pages")


def site_path(path: str) -> str:
    """Return where in the site a file or folder of the repository is, both relative and with `/`."""
    if path == "README.md":
        return "index.md"
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    place = ROOT / path
    if place.is_dir():
        return f"repository/{path}/" + ("README.md" if (place / "README.md").is_file() else "index.md")
    is_text = place.suffix in LANGUAGES or place.suffix == ".ipynb"
    return f"repository/{path}.md" if is_text else f"repository/{path}"


def linked_from(path: str, text: str) -> Iterator[tuple[str, str]]:
    """Yield each link into the repository of a Markdown file, as it is written and as the path that it means."""
    for prose in CODE.split(text)[::2]:
        for link in LINK.findall(prose):
            target = link.partition("#")[0]
            if target and not re.match(r"[a-z]+:", target):
                yield link, posixpath.normpath(posixpath.join(posixpath.dirname(path), target))


def rewritten(path: str, text: str) -> str:
    """Return a Markdown file of the repository with the site's links."""
    here = posixpath.dirname(site_path(path))
    places = {
        link: posixpath.relpath(site_path(target), here or ".") + "".join(link.partition("#")[1:])
        for link, target in linked_from(path, text)
        if (ROOT / target).exists()
    }
    parts = CODE.split(text)
    parts[::2] = [LINK.sub(lambda found: places.get(found[0], found[0]), prose) for prose in parts[::2]]
    return "".join(parts)


def outside() -> list[str]:
    """Return the paths outside docs/ that the site needs: those linked from docs/, and from these in turn."""
    known = dict.fromkeys(ALWAYS)
    waiting = [*(file.relative_to(ROOT).as_posix() for file in sorted((ROOT / "docs").rglob("*.md"))), *ALWAYS]
    while waiting:
        path = waiting.pop()
        for _, target in linked_from(path, (ROOT / path).read_text(encoding="utf-8")):
            place = ROOT / target
            if target in known or target.startswith(("docs/", "..")) or not place.exists():
                continue
            if place.is_dir() and (place / "README.md").is_file():
                target, place = f"{target}/README.md", place / "README.md"
                if target in known:
                    continue
            known[target] = None
            if place.suffix in (".md", ".ipynb"):
                waiting.append(target)
    return list(known)


def page_of(path: str) -> str:
    """Return the Markdown page of a source file, a notebook or a folder."""
    place = ROOT / path
    if place.is_dir():
        return UNSEARCHED + folder_page(path)
    if place.suffix == ".ipynb":
        return notebook_page(json.loads(place.read_text(encoding="utf-8")))
    text = place.read_text(encoding="utf-8").rstrip("\n")
    return f"{UNSEARCHED}# `{path}`\n\n``````{LANGUAGES[place.suffix]}\n{text}\n``````\n"


def folder_page(path: str) -> str:
    """Return a list of a folder's files, each with the first sentence of its docstring."""
    place = ROOT / path
    entries = sorted(entry for entry in place.iterdir() if entry.name != "__pycache__")
    room = place / "__init__.py"
    lines = [f"# `{path}/`", "", *([docstring(room), ""] if room.is_file() else [])]
    for entry in entries:
        says = docstring(entry / "__init__.py" if entry.is_dir() else entry).partition("\n\n")[0].replace("\n", " ")
        lines.append(f"- `{entry.name}{'/' * entry.is_dir()}`{': ' * bool(says)}{says}")
    return "\n".join(lines) + "\n"


def docstring(file: Path) -> str:
    """Return a module's docstring as Markdown; of what is no module, nothing."""
    if file.suffix != ".py" or not file.is_file():
        return ""
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return without_roles(text).replace("[", r"\[")  # shapes and usage lines are no links


def without_roles(text: str) -> str:
    """Return a docstring with Sphinx's roles, :class:`~a.b.C`, as code: `C`."""
    text = re.sub(r":[a-z]+:`~[\w.]*?(\w+)`", r"`\1`", text)
    return re.sub(r":[a-z]+:`\.?([^`]+)`", r"`\1`", text)


def notebook_page(notebook: dict[str, Any]) -> str:
    """Return a notebook's cells as Markdown: texts, code, and outputs as text or pictures."""
    parts: list[str] = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            if "image/png" in data:
                picture = "".join(data["image/png"]).strip()
                parts.append(f"![What the cell above draws](data:image/png;base64,{picture})")
            else:
                text = "".join(output.get("text") or data.get("text/plain", ""))
                parts.append(f"```text\n{text.rstrip()}\n```")
    return "\n\n".join(parts) + "\n"


def on_files(files: Files, config: Any) -> Files:
    """Add the pages of what lies outside docs/."""
    for path in outside():
        place = ROOT / path
        if place.suffix == ".md":
            content = {"content": place.read_text(encoding="utf-8")}
        elif site_path(path).endswith(".md"):
            content = {"content": page_of(path)}
        else:
            content = {"abs_src_path": str(place)}
        files.append(File.generated(config, site_path(path), **content))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Rewrite the links of pages that are Markdown in the repository."""
    uri = page.file.src_uri
    path = "README.md" if uri == "index.md" else f"docs/{uri}"
    if uri.startswith("repository/"):
        path = uri.removeprefix("repository/")
        path = path.removesuffix(".md") if path.endswith(".ipynb.md") else path
    return rewritten(path, markdown) if (ROOT / path).is_file() else markdown
