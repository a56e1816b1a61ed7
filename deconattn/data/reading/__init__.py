"""Documents out of text, JSON lines, Parquet and Arrow: files, folders, URLs and standard input.

`inputs` finds them (`remote`: URLs), `sources` opens and decompresses, `lines` and `columns` cut by content alone,
`blocks` gives the pieces in order (`ahead`: in a thread), `parse` makes documents of them, `tally` counts what is left
out. `texts` is all that as one iterator.
"""
