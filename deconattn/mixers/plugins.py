"""Third-party variants: Python files that register mixers of their own."""

import hashlib
import importlib.util
import inspect
import io
import sys
import tokenize
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from deconattn.errors import UserError
from deconattn.json_files import read_bytes
from deconattn.layers.head_parts import mixer_names
from deconattn.mixers import registry
from deconattn.mixers.base import Mixer
from deconattn.program import quoted

_DIGEST, _VARIANTS = "__deconattn_digest__", "__deconattn_variants__"
"""Attributes of a plugin's module: the digest of its file when it ran, and the variants that it registered."""


def load_plugins(files: Sequence[Path]) -> None:
    """Run each file once; what it registers is then known like our own variants.

    A copy of a file that has run, in the folder of another run say, does not run again.

    Raises:
        UserError: a file that is missing or fails, or that registers a name which another file has, with its reason.
    """
    _register_all(files, lambda variant, mixer: variant)


def names_in_process(files: Sequence[Path]) -> dict[str, str]:
    """Run each file as :func:`load_plugins` does; return each registered variant's name in this process.

    It differs from the name in the file where a different file has that already: models trained with plugins
    of one name are each opened with their own.

    Raises:
        UserError: a file that is missing or fails, with its reason.
    """

    def name_here(variant: str, mixer: type[Mixer]) -> str:
        known = registry._REGISTRY.get(variant, mixer)
        digest: str = vars(sys.modules[mixer.__module__])[_DIGEST]
        return variant if known is mixer else f"{variant}@{digest[:8]}"

    return _register_all(files, name_here)


def _register_all(files: Sequence[Path], name_here: Callable[[str, type[Mixer]], str]) -> dict[str, str]:
    before = dict(registry._REGISTRY)
    names: dict[str, str] = {}
    for file in files:
        try:
            for variant, mixer in _variants(file.resolve(), [*names.values()]).items():
                names[variant] = name_here(variant, mixer)
                registry.register(names[variant])(mixer)
        except Exception as error:
            registry._REGISTRY.clear()
            registry._REGISTRY.update(before)
            raise UserError(f"--plugin {file}: {type(error).__name__}: {error}") from error
    return names


def _variants(path: Path, visible: Sequence[str]) -> dict[str, type[Mixer]]:
    """Run a file and return what it registers; only the variants `visible` of other plugins are known to it."""
    digest = code_digest(path)
    copies: list[dict[str, type[Mixer]]] = [
        module[_VARIANTS] for module in map(vars, list(sys.modules.values())) if module.get(_DIGEST) == digest
    ]
    if copies:  # of several, loaded before either was known here, the one that models may be of
        return next((found for found in copies if found.items() <= registry._REGISTRY.items()), copies[0])
    name = f"deconattn_plugin_{path.stem}"
    if name in sys.modules:  # a namesake in another folder, or the file before it was changed
        name += f"_{digest}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError("not a Python file")
    plugin = importlib.util.module_from_spec(spec)
    vars(plugin)[_DIGEST] = digest
    sys.modules[name] = plugin
    before = dict(registry._REGISTRY)
    foreign = [variant for variant, mixer in before.items() if _DIGEST in vars(sys.modules[mixer.__module__])]
    try:
        for variant in set(foreign).difference(visible):
            del registry._REGISTRY[variant]
        known = dict(registry._REGISTRY)
        spec.loader.exec_module(plugin)
        found = {variant: mixer for variant, mixer in registry._REGISTRY.items() if known.get(variant) is not mixer}
    except BaseException:
        del sys.modules[name]
        raise
    finally:
        registry._REGISTRY.clear()
        registry._REGISTRY.update(before)
    vars(plugin)[_VARIANTS] = found
    return found


def has_run(file: Path) -> bool:
    """Whether a file's code has run in this process, from wherever: opening what needs it runs nothing new."""
    try:
        digest = code_digest(file)
    except (OSError, ValueError, SyntaxError, tokenize.TokenError):  # whoever runs it gets the reason
        return False
    return any(module.get(_DIGEST) == digest for module in map(vars, list(sys.modules.values())))


def check_asked(files: Sequence[Path], trusted: bool, owner: str) -> None:
    """Let the plugins that a run folder names run only where they were asked for, and say so.

    Args:
        trusted: `--trust-plugins` was given.
        owner: the run folder or checkpoint.

    Raises:
        UserError: naming the first file that was neither given nor trusted.
    """
    for file in files:
        if has_run(file):
            continue
        if not trusted:
            raise UserError(
                f"{owner} was trained with {file}, whose code would run here: give it with --plugin {quoted(file)}, "
                "or --trust-plugins to run whatever it names"
            )
        print(f"note: {file} is run, which {owner} was trained with", file=sys.stderr)


def changed_code(trained: Mapping[str, str]) -> str | None:
    """Return the first variant whose code here is not what a run was trained with (:func:`plugin_code`), if any."""
    return next((variant for variant, digest in trained.items() if mixer_digest(variant) != digest), None)


def mixer_digest(name: str) -> str:
    """Return :func:`code_digest` of the file that registered a variant, as it was then."""
    mixer = registry.mixer_class(name)
    found: str | None = vars(sys.modules.get(mixer.__module__, mixer)).get(_DIGEST)
    return found or code_digest(Path(inspect.getfile(mixer)))


def code_digest(file: Path) -> str:
    """Return a digest of a Python file without its comments and empty lines."""
    text = read_bytes(file).decode("utf-8")
    lines = text.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    kept = "\n".join(line.rstrip() for line in lines if line.strip())
    return hashlib.sha256(kept.encode()).hexdigest()[:16]


def plugin_code(variants: Iterable[str]) -> dict[str, str]:
    """Return :func:`mixer_digest` of each variant that is not this package's, for an export to carry."""
    return {variant: mixer_digest(variant) for variant in plugin_files(variants)}


def plugin_files(variants: Iterable[str]) -> dict[str, Path]:
    """Return the file that registers each variant that is not this package's; of layers by heads, of their parts."""
    names = sorted(mixer_names(variants))
    files = {name: Path(inspect.getfile(registry.mixer_class(name))).resolve() for name in names}
    ours = Path(__file__).resolve().parents[1]
    return {variant: file for variant, file in files.items() if ours not in file.parents}


def check_plugin_code(exported: Mapping[str, str]) -> None:
    """Check that the variants loaded here are those that an export was made with.

    `import deconattn` makes this package's classes serve every export, whatever code lies beside it, and these run
    what a plugin file registered. Two files that register one name are two models.

    Raises:
        UserError: a variant of `exported` (:func:`plugin_code`) is loaded from a file with other code.
    """
    for variant, digest in exported.items():
        if variant in registry.variant_names() and plugin_code([variant]).get(variant) != digest:
            file = inspect.getfile(registry.mixer_class(variant))
            raise UserError(
                f"variant {variant!r} is loaded from {file}, which is not the code that this model was exported with: "
                "load that file, or the model where deconattn is not imported"
            )
