"""From documents to a folder of shards; the body of the command `pack`.

`pack` is the whole, `config` its flags, `pipeline` the way from blocks to shards: `encode` (workers), `selection` (with
`dedup` and `split`), `shuffle` (over `documents` on the disk), `assemble` (shards, written in the `background`).
`journal`, `spool` and `plan` let an interrupted pack go on; `output` says what may be replaced, `report` and `progress`
what happens.
"""
