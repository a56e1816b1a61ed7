#!/usr/bin/env python3
"""`deconattn search` in a clone: python tools/search.py MODEL --data PACKED --out DIR"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from deconattn.cli import run
from deconattn.commands.search import main

if __name__ == "__main__":
    run(lambda: main(sys.argv[1:]))
