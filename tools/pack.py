"""Pack text into Arrow shards: `python tools/pack.py INPUT... --tokenizer T --out DIR`."""

import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from deconattn.cli import parse, run


def main() -> int:
    """Pack and print the summary; 128 + the signal's number, as shells have it, after an interrupt."""
    # Imported here because every worker process imports this file anew.
    from deconattn.data.packing.pack import PackConfig, pack

    signal.signal(signal.SIGTERM, _interrupt)
    try:
        print(pack(parse(PackConfig)))
    except KeyboardInterrupt as interrupt:
        print("interrupted; the same command goes on from the last shard that was finished", file=sys.stderr)
        return 128 + (interrupt.args[0] if interrupt.args else signal.SIGINT)
    return 0


def _interrupt(number: int, _: object) -> None:
    raise KeyboardInterrupt(number)


if __name__ == "__main__":
    run(main)
