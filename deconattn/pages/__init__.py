"""What pages share: one colour a variant (`palette`), charts as inline SVG (`charts`, `axis`), and their frame.

A page is one file that needs nothing else: `frame` renders a room's template, which extends `page.html.j2` (the look,
sortable tables, and what a mark says when pointed at) and takes its figures from `macros.html.j2`.
"""
