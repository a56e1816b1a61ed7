"""Probing: a grid of small models trained on synthetic tasks, and the page that shows what each can do.

:mod:`.grid` says which models a request means, :mod:`.cell` trains one, :mod:`.results` is what is known of them;
:mod:`.findings` has their intervals and verdicts, :mod:`.claims` what was published, :mod:`.page` shows all.
"""
