"""The paper's tables and figures again: plan, train what is missing, measure, and one page that shows it.

In the order in which things happen: `plans` (a table as runs and what is measured of each), `estimate` (what the runs
cost, and which machine does which); `folder` (where everything lies, which files say that something is done, and who
works on what), `jobs` (the command of each job, and what it leaves behind), `runner`, `progress_view`; `paper` (what is
printed there), `gather` (all numbers), `claims` (what they show), and `pages` (the report) with `tables` and
`pictures`, which are made of the charts of `deconattn.pages` and of `radar`.

`demo` puts a few variants side by side in minutes, by the same commands.
"""
