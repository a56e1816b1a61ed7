"""The file of `--config`: flags by their names, in YAML or JSON, or what a run wrote down of itself.

size: 70m                 # flat, as on the command line; seq-len and seq_len are the same
seq-len: 1024
optimization:             # or by concern, as in a run's config.json
    lr: 3e-4
"""

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from deconattn.config.flags import TrainingFlags
from deconattn.config.pattern import nearest
from deconattn.config.renamed import renamed_values
from deconattn.config.run_config import RunConfig
from deconattn.errors import UserError

_RUN = {field.name for field in dataclasses.fields(RunConfig)}
"""Keys of a run's config.json."""
_ACTS = ("config", "resume", "resume_from", "trust_plugins")
"""Flags that only a command line can have."""


@dataclasses.dataclass(frozen=True)
class ConfigFile:
    """Flags of a file.

    Attributes:
        values: of each flag that the file gives, by the field's name, as the file has it.
        of_a_run: it is a run's config.json, which holds every flag, those not given included.
    """

    path: Path
    values: dict[str, Any]
    of_a_run: bool = False

    def on(self, flags: TrainingFlags) -> TrainingFlags:
        """Return `flags` with those of the file replaced.

        Raises:
            UserError: a value that is not of the flag's type.
        """
        from pydantic import TypeAdapter, ValidationError

        changed = {}
        for group, fields in _groups(flags):
            own = {name: self._fitting(name, self.values[name], fields[name]) for name in fields if name in self.values}
            changed[group] = fields | own
        try:
            return TypeAdapter(TrainingFlags).validate_python(changed)
        except ValidationError as error:
            first = error.errors()[0]
            name = str(first["loc"][1])
            reason = first["msg"][0].lower() + first["msg"][1:]
            raise UserError(f"--config {self.path}: {name} is {self.values[name]!r}: {reason}") from None

    def _fitting(self, name: str, value: Any, default: Any) -> Any:
        """Convert a value that pydantic would take too literally, or not literally enough."""
        if name == "phase":
            return _phases(value)
        if isinstance(default, tuple) and isinstance(value, str):
            return (value,)
        if isinstance(value, bool) and not isinstance(default, bool):
            raise UserError(f"--config {self.path}: {name} is {str(value).lower()}: it is no switch, give its value")
        return value


def read_config_file(path: Path) -> ConfigFile:
    """Read a file and check the names in it.

    Raises:
        UserError: no such file, neither YAML nor JSON, a name that is no flag's or is there twice, or a flag that only
            a command line can have.
    """
    content = _content(path)
    of_a_run = isinstance(content, dict) and isinstance(content.get("flags"), dict) and set(content) <= _RUN
    if of_a_run:
        content = content["flags"]
    if not isinstance(content, dict):
        raise UserError(f"--config {path}: it must hold flags by their names, such as seq_len: 1024")
    values: dict[str, Any] = {}
    for name, value in _flat(path, content):
        if name in values:
            raise UserError(f"--config {path}: {name} is there twice: leave one out")
        values[name] = value
    for act in _ACTS:
        if values.pop(act, None):
            flag = f"--{act.replace('_', '-')}"
            raise UserError(f"--config {path}: {act} has no place in a file: give {flag} on the command line")
    return ConfigFile(path, values, of_a_run)


def _phases(value: Any) -> Any:
    """Convert phases: one or several, each words as on the command line, or a list of them."""
    if isinstance(value, str) or (isinstance(value, list) and value and not isinstance(value[0], (list, str))):
        value = [value]
    if not isinstance(value, list):
        return value
    return [phase.split() if isinstance(phase, str) else [str(word) for word in phase] for phase in value]


def _groups(flags: TrainingFlags) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each group's name, and its flags with their values."""
    for group in dataclasses.fields(flags):
        part = getattr(flags, group.name)
        yield group.name, {field.name: getattr(part, field.name) for field in dataclasses.fields(part)}


def _flat(path: Path, content: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    groups = dict(_groups(TrainingFlags()))
    homes = {name: group for group, fields in groups.items() for name in fields}
    for key, value in renamed_values(content).items():
        group = _field(key)
        if group in groups and isinstance(value, dict):
            for inner, inner_value in renamed_values(value).items():
                if homes.get(_field(inner)) != group:
                    whole = [f"{home}.{name}" for name, home in homes.items()]
                    known = nearest(f"{group}.{_field(inner)}", whole)
                    raise UserError(f"--config {path}: {group}.{inner} is no flag{known}")
                yield _field(inner), inner_value
        elif group in homes:
            yield group, value
        else:
            raise UserError(f"--config {path}: {key} is no flag{nearest(group, homes)}")


def _field(key: object) -> str:
    return str(key).replace("-", "_")


def _content(path: Path) -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """YAML 1.2's scalars, since 1.1's make the pattern 1:3 the number 63; pydantic reads the fractions."""

        yaml_implicit_resolvers: ClassVar[dict[str, list[Any]]] = {}

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            seen = set()
            for key, _ in node.value:
                if str(key.value) in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"{key.value} is there twice", key.start_mark)
                seen.add(str(key.value))
            return super().construct_mapping(node, deep)

    for kind, pattern, first in (
        ("bool", "true|True|TRUE|false|False|FALSE", "tTfF"),
        ("null", "~|null|Null|NULL|", "~nN\0"),
        ("int", "[-+]?(?:0|[1-9][0-9_]*)", "-+0123456789"),
    ):
        first_letters = ["" if letter == "\0" else letter for letter in first]
        Loader.add_implicit_resolver(f"tag:yaml.org,2002:{kind}", re.compile(f"(?:{pattern})$"), first_letters)
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix == ".json" else yaml.load(text, Loader)
        if "\\u0000" in json.dumps(content, default=str):
            raise ValueError("a text in it has a null character, as no path has")
        return content
    except OSError as error:
        raise UserError(f"--config {path}: {error.strerror}; check the path") from None
    except (ValueError, yaml.YAMLError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UserError(f"--config {path}{where}: {reason}") from None
