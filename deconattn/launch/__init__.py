"""From a shell to ranks that train: the launcher, what it checks before, each rank's way in, and how ranks end.

:mod:`.launcher` starts :mod:`.worker` on every rank, after :mod:`.preflight`; :mod:`.ranks` and :mod:`.world` say which
ranks there are, :mod:`.peers` that they were started alike. :mod:`.meeting`, with :mod:`.siblings`, looks after them
until all are there, and from then on :mod:`.faults`, with :mod:`.roll`, which ends them in order. :mod:`.limits` raises
the number of files that they may open.
"""
