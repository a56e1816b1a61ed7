"""From documents to a folder of shards; the body of the command `pack`.

`pack` is the whole, `pack_config` its flags, `packer` the way from blocks to shards: `encode` (workers), `selection`,
`shuffle` (through sorted runs on the disk), `assemble` (the shards of each split). `document_batch` holds documents
between these steps, and `journal` lets an interrupted pack go on.
"""
