"""Inspecting, checking and rewriting packed corpora; the body of the command `shards`.

`info`, `verify` (with `record_batches` and `examine`), `merge`, `recut`, `decode`, and `convert_ids` (with
`from_megatron` and `from_datasets`). `new_corpus` writes a packed corpus.
"""
