"""Inspecting, checking and rewriting packed corpora; the body of the command `shards`.

`info`, `verify` (with `record_batches` and `examine`), `rewrite` (merge and split), `decode`, and `convert_ids` (with
`id_sources`). `new_corpus` writes a packed corpus.
"""
