"""Prints, for pip, what pyproject.toml requires with other bounds: python .ci/requirements.py oldest|newest [OTHER ...]

oldest: every lower bound exactly. newest: lower bounds alone, so that pip takes the newest releases that go together,
past our upper bounds and pins. OTHER requirements ("transformers==5.16.*") take the place of ours. The extra `test`,
and the extras that it names, are part of both.
"""

import re
import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

LINE = re.compile(r"(?P<package>[\w.-]+)(\[(?P<extras>[\w,-]+)])?(?P<bounds>[^;]*)(?P<marker>;.*)?")


def requirements(project: dict, bounds: str, others: Sequence[str]) -> list[str]:
    """One line a package.

    Args:
        project: the table `project` of pyproject.toml.
        bounds: `oldest` or `newest`.
        others: lines that replace those of the same package.
    """
    lines = {}
    for match in _required(project, project["dependencies"] + project["optional-dependencies"]["test"]):
        lower = re.search(r"[>=]=\s*([\w.]+)", match["bounds"])
        if lower is None:
            raise SystemExit(f"error: {match[0]}: it has no lower bound; give it one in pyproject.toml")
        operator = {"oldest": "==", "newest": ">="}[bounds]
        lines[_name(match["package"])] = f"{match['package']}{operator}{lower[1]}{match['marker'] or ''}"
    for other in others:
        if (match := LINE.fullmatch(other)) is None or _name(match["package"]) not in lines:
            raise SystemExit(f"error: {other}: not a requirement of a package of ours; one is {next(iter(lines))}==1.2")
        lines[_name(match["package"])] = other
    return list(lines.values())


def _required(project: dict, lines: Sequence[str]) -> Iterator[re.Match[str]]:
    """The lines, and in place of our own extras what these require."""
    for line in lines:
        match = LINE.fullmatch(line)
        if match is None:
            raise SystemExit(f"error: {line}: expected NAME[EXTRA]BOUNDS in pyproject.toml")
        if match["package"] != project["name"]:
            yield match
            continue
        for extra in match["extras"].split(","):
            yield from _required(project, project["optional-dependencies"][extra])


def _name(package: str) -> str:
    """As package indexes compare it."""
    return re.sub(r"[-_.]+", "-", package).lower()


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in ("oldest", "newest"):
        raise SystemExit(__doc__)
    pyproject = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    print("\n".join(requirements(pyproject["project"], sys.argv[1], sys.argv[2:])))
