#!/usr/bin/env python3
"""`deconattn demo` in a clone: python tools/demo.py [--compare VARIANT...] [--out DIR]"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from deconattn.cli import run
from deconattn.commands.demo import main

if __name__ == "__main__":
    run(lambda: main(sys.argv[1:]))
