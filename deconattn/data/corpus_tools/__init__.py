"""Looking after packed corpora; the body of the command `shards`, a file a command.

`info`, `verify` (with `arrow_blocks`, `examine` and `round_trip`), `merge`, `recut`, `decode`, and `convert` (with
`from_megatron` and `from_datasets`). `documents` reads a corpus document by document, `new_corpus` writes one.
"""
