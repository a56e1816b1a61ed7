#!/usr/bin/env python3
"""`deconattn compare` in a clone: python tools/compare.py RUN... [--out PAGE.html]"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from deconattn.cli import run
from deconattn.commands.compare import main

if __name__ == "__main__":
    run(lambda: main(sys.argv[1:]))
