"""The command lines, a file a command: everything else is below them, and nothing imports them.

`deconattn NAME ...` reaches them all through :func:`main`; in a clone tools/NAME.py does, and launch.sh trains.
"""

import sys
from collections.abc import Sequence
from importlib import import_module

from deconattn.config.pattern import nearest
from deconattn.errors import UserError
from deconattn.program import program

COMMANDS = {
    "demo": "See what mixers do, in minutes, on one page.",
    "pack": "Pack text into Arrow shards.",
    "shards": "Look after packed corpora: info, verify, decode, merge, more.",
    "plan": "Count parameters, and plan what a job costs on how many GPUs.",
    "train": "Train, on all GPUs of this machine or of several.",
    "plot": "Draw runs' losses and more, in the terminal or as a page.",
    "compare": "Put runs beside each other: settings, results, curves.",
    "runs": "List a folder's runs, and remove some.",
    "export": "Write a run or a checkpoint as a Hugging Face folder.",
    "convert": "Make a checkpoint one file, or a Hugging Face model a run.",
    "generate": "Continue a text with a trained model.",
    "evaluate": "Score trained models on the paper's nine benchmarks.",
    "analyze": "Look inside trained models: indicators, activations, maps.",
    "search": "Find which layers of a model need attention, and a hybrid.",
    "check-variant": "Try a variant of your own on what a variant promises.",
    "probe": "Train small models on synthetic tasks, and compare them.",
    "reproduce": "Make the paper's tables and figures.",
}
"""Commands by name, each with its description.

Its body is the module of that name, with `_` for `-`: `main(words)` returns an exit code or None.
"""

if sys.argv[0] == "-m":  # python -m deconattn.commands.pack, which would define what is in it and end
    print(f"error: {sys.orig_argv[sys.orig_argv.index('-m') + 1]} is no program: {program()} NAME is", file=sys.stderr)
    sys.exit(2)


def main(words: Sequence[str]) -> int | None:
    """Run one command; no other is imported.

    Raises:
        UserError: there is no such command, or what the command itself has to say.
    """
    if not words or words[0] in ("-h", "--help"):
        print(_overview())
        return 0
    name, *others = words
    if name not in COMMANDS:
        raise UserError(f"there is no command {name!r}{nearest(name, COMMANDS)}; {program()} --help lists them")
    body: int | None = import_module(f"{__name__}.{name.replace('-', '_')}").main(others)
    return body


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = (f"  {name:{width}}  {purpose}" for name, purpose in COMMANDS.items())
    return "\n".join(
        [f"usage: {program()} COMMAND ...", "", *lines, "", f"{program()} COMMAND --help lists its flags."]
    )
