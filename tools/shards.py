#!/usr/bin/env python3
"""`deconattn shards` in a clone: python tools/shards.py info|verify|decode|merge|split|convert ..."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from deconattn.cli import run
from deconattn.commands.shards import main

if __name__ == "__main__":
    run(lambda: main(sys.argv[1:]))
