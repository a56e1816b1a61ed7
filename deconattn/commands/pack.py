"""Pack text into Arrow shards: pack INPUT... --tokenizer T --out DIR."""

import signal
import sys
from collections.abc import Sequence

from deconattn.cli import handled, parse
from deconattn.program import command


def main(words: Sequence[str]) -> int:
    """Pack and print the summary; 128 + the signal's number, as shells have it, after an interrupt."""
    # Imported here because every worker process imports this file anew, and pack's own once --help has left.
    from deconattn.data.packing.pack_config import PackConfig

    try:
        with handled(_interrupt, signal.SIGTERM):
            config = parse(PackConfig, words, program=command("pack"))
            from deconattn.data.packing.pack import pack

            print(pack(config))
    except KeyboardInterrupt as interrupt:
        print("interrupted; the same command goes on from the last shard that was finished", file=sys.stderr)
        return 128 + (interrupt.args[0] if interrupt.args else signal.SIGINT)
    return 0


def _interrupt(number: int, _: object) -> None:
    raise KeyboardInterrupt(number)
