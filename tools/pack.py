"""Pack text into Arrow shards: `python tools/pack.py INPUT... --tokenizer T --out DIR`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from deconattn.cli import parse, run


def main() -> None:
    """Pack and print the summary."""
    # Imported here because every worker process imports this file anew.
    from deconattn.data.pack import PackConfig, pack

    print(pack(parse(PackConfig)))


if __name__ == "__main__":
    run(main)
