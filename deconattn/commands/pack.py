"""Pack text into Arrow shards: pack INPUT... --tokenizer T --out DIR."""

import signal
import sys
from collections.abc import Sequence

from deconattn.cli import parse
from deconattn.program import command


def main(words: Sequence[str]) -> int:
    """Pack and print the summary; 128 + the signal's number, as shells have it, after an interrupt."""
    # Imported here because every worker process imports this file anew.
    from deconattn.data.packing.pack import PackConfig, pack

    signal.signal(signal.SIGTERM, _interrupt)
    try:
        print(pack(parse(PackConfig, words, program=command("pack"))))
    except KeyboardInterrupt as interrupt:
        print("interrupted; the same command goes on from the last shard that was finished", file=sys.stderr)
        return 128 + (interrupt.args[0] if interrupt.args else signal.SIGINT)
    return 0


def _interrupt(number: int, _: object) -> None:
    raise KeyboardInterrupt(number)
