#!/usr/bin/env python3
"""`deconattn convert` in a clone: python tools/convert.py SOURCE OUT"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from deconattn.cli import run
from deconattn.commands.convert import main

if __name__ == "__main__":
    run(lambda: main(sys.argv[1:]))
