"""Contestants of `pack.py` that have no command line of their own, each in a process of its own.

    python -m benchmarks.packing.worker datasets|gigatoken|tokenizers CORPUS.jsonl TOKENIZER.json EOS_ID WORKERS OUT

`datasets` is the recipe of Hugging Face's users: load_dataset, a batched map, save_to_disk. The other two are bare
tokenizers: the texts are in memory before the clock starts, so nothing is measured but tokenizing. They leave the times
in OUT/times.json and the ids, separators added afterwards, in OUT/tokens.npy and OUT/lengths.npy.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

BATCH_DOCUMENTS = 1000
"""Texts a call of `tokenizers`, whose results take ten times the ids' memory, and rows a batch of `datasets`."""
Encode = Callable[[list[str]], Iterator[Any]]
"""From texts to results in batches, each of which yields a text's ids or an object that has them."""


def main() -> None:
    """As the arguments say."""
    kind, corpus, tokenizer, separator, workers, out = sys.argv[1:]
    if kind == "datasets":
        map_dataset(corpus, tokenizer, int(separator), int(workers), Path(out))
    else:
        bare(kind, Path(corpus), tokenizer, int(separator), Path(out))


def map_dataset(corpus: str, tokenizer_file: str, separator: int, workers: int, out: Path) -> None:
    """`datasets.map` with the tokenizers library, saved to disk."""
    from datasets import load_dataset
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(tokenizer_file)

    def encode(rows: dict[str, list[Any]]) -> dict[str, list[list[int]]]:
        encodings = tokenizer.encode_batch_fast(rows["text"], add_special_tokens=False)
        return {"input_ids": [[*encoding.ids, separator] for encoding in encodings]}

    texts = load_dataset("json", data_files=corpus, split="train", cache_dir=str(out / "cache"))
    ids = texts.map(
        encode, batched=True, batch_size=BATCH_DOCUMENTS, num_proc=workers, remove_columns=texts.column_names
    )
    ids.save_to_disk(out / "dataset")


def bare(library: str, corpus: Path, tokenizer_file: str, separator: int, out: Path) -> None:
    """Tokenize texts that are in memory, on all cores: `first`, and `warm` for gigatoken, which remembers words."""
    with corpus.open(encoding="utf-8") as file:
        texts: list[str] = [json.loads(line)["text"] for line in file]
    encode = {"gigatoken": _gigatoken, "tokenizers": _tokenizers}[library](tokenizer_file)
    for _ in encode(texts[:1]):  # imports what it needs, and starts its threads
        pass
    times = {}
    times["first"], ids = timed_pass(encode(texts), separator)
    if library == "gigatoken":
        times["warm"], ids = timed_pass(encode(texts), separator)
    out.mkdir(parents=True, exist_ok=True)
    np.save(out / "tokens.npy", np.concatenate(ids))
    np.save(out / "lengths.npy", np.array([len(one) for one in ids], dtype=np.int64))
    (out / "times.json").write_text(json.dumps(times), encoding="utf-8")


def timed_pass(batches: Iterator[Any], separator: int) -> tuple[dict[str, float], list[npt.NDArray[np.uint32]]]:
    """Wall and CPU seconds that the batches took to come, and each text's ids, to which the separator was added."""
    seconds = cpu_seconds = 0.0
    end = np.array([separator], dtype=np.uint32)
    found: list[npt.NDArray[np.uint32]] = []
    while True:
        wall, cpu = time.perf_counter(), time.process_time()
        batch = next(batches, None)
        seconds += time.perf_counter() - wall
        cpu_seconds += time.process_time() - cpu
        if batch is None:
            return {"seconds": seconds, "cpu_seconds": cpu_seconds}, found
        for one in batch:
            found.append(np.concatenate([np.asarray(getattr(one, "ids", one), dtype=np.uint32), end]))


def _gigatoken(tokenizer_file: str) -> Encode:
    import gigatoken

    tokenizer = gigatoken.Tokenizer(tokenizer_file)

    def encode(texts: list[str]) -> Iterator[Any]:
        yield tokenizer.encode_batch(texts, parallel=True)

    return encode


def _tokenizers(tokenizer_file: str) -> Encode:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(tokenizer_file)

    def encode(texts: list[str]) -> Iterator[Any]:
        for start in range(0, len(texts), BATCH_DOCUMENTS):
            yield tokenizer.encode_batch_fast(texts[start : start + BATCH_DOCUMENTS], add_special_tokens=False)

    return encode


if __name__ == "__main__":
    main()
