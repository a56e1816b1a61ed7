"""`python -m deconattn`, and the command `deconattn`."""

import sys

from deconattn.cli import run
from deconattn.commands import main as command


def main() -> None:
    """Run the command that the process's arguments name, and exit."""
    run(lambda: command(sys.argv[1:]))


if __name__ == "__main__":
    main()
