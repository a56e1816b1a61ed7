"""The bounds of pyproject.toml, constraints.txt, and what .ci/requirements.py makes of them."""

import importlib.util
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
ALL = {
    line: Requirement(line)
    for line in (
        *PROJECT["dependencies"],
        *(line for extra in PROJECT["optional-dependencies"].values() for line in extra),
    )
    if Requirement(line).name != PROJECT["name"]
}
TOY = {
    "name": "toy",
    "dependencies": ["torch>=2.11,<2.15", "deep_speed==0.19.8"],
    "optional-dependencies": {"test": ["toy[eval]", "pytest>=9.0,<10; python_version>='3'"], "eval": ["lm>=0.4,<1"]},
}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ci_requirements", ROOT / ".ci" / "requirements.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("line", ALL)
def test_every_dependency_has_two_bounds(line: str) -> None:
    operators = {specifier.operator for specifier in ALL[line].specifier}
    assert operators in ({"=="}, {">=", "<"})


def test_the_constraints_are_exact_and_within_the_bounds() -> None:
    """For what the README's two commands install; a local label would be one that other machines do not have."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {}
    for requirement in (Requirement(line) for line in lines if not line.startswith("#")):
        [specifier] = requirement.specifier
        assert specifier.operator == "==" and not {"*", "+"} & set(specifier.version)
        pinned[canonicalize_name(requirement.name)] = specifier.version
    extras = PROJECT["optional-dependencies"]
    for line in (*PROJECT["dependencies"], *extras["test"], *extras["eval"]):
        if (requirement := Requirement(line)).name != PROJECT["name"]:
            assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), line


def test_oldest_and_newest(script: ModuleType) -> None:
    marker = "; python_version>='3'"
    oldest = ["torch==2.11", "deep_speed==0.19.8", "lm==0.4", f"pytest==9.0{marker}"]
    assert script.requirements(TOY, "oldest", []) == oldest
    newest = ["torch>=2.11", "deep-speed", "lm>=0.4", f"pytest>=9.0{marker}"]
    assert script.requirements(TOY, "newest", ["deep-speed"]) == newest


def test_what_is_not_ours_or_has_no_lower_bound_is_refused(script: ModuleType) -> None:
    with pytest.raises(SystemExit, match="error: numpy==2: not a requirement of a package of ours"):
        script.requirements(TOY, "oldest", ["numpy==2"])
    with pytest.raises(SystemExit, match="error: torch<3: it has no lower bound"):
        script.requirements(TOY | {"dependencies": ["torch<3"]}, "oldest", [])


def test_every_line_of_ours_is_understood(script: ModuleType) -> None:
    for bounds, operator in (("oldest", "=="), ("newest", ">=")):
        for line in script.requirements(PROJECT, bounds, []):
            [specifier] = Requirement(line).specifier
            assert specifier.operator == operator
