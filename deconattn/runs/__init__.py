"""Runs seen: their curves, beside each other, and which there are.

`run` reads a run folder, `differences` says what tells several apart, `curves` has what is drawn: in a terminal
(`terminal`), as a picture (`figure`) and on a page (`pages`). `comparison` puts results beside each other (`tables` and
`pages` show them, `texts` has models write). `listing` lists a folder's runs, `removal` removes some.
"""
