"""From a shell to ranks that train: the launcher, what it checks before, each rank's way in, and how ranks end.

:mod:`.launcher` starts :mod:`.worker` on every rank, after :mod:`.preflight`; :mod:`.ranks` and :mod:`.world` say which
ranks there are, :mod:`.peers` that they were started alike; :mod:`.faults` ends them in order.
"""
