"""Documents out of text, JSON lines, Parquet and Arrow: files, folders, URLs and standard input.

`input_files` finds them, `sources` opens and decompresses, `lines` and `columns` cut by content alone, `blocks` gives
the pieces in order, read ahead in a thread, and `texts` makes documents of them and counts what is left out.
"""
