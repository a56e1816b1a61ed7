"""The paper's tables and figures again: plan, train what is missing, measure, and one page that shows it.

In the order in which things happen: `plans` (a table as runs and what is measured of each), `estimate` (what the runs
cost, and which machine does which); `folder` (where everything lies, which files say that something is done, and who
works on what), `job_commands` (the command of each job), `process` (a child that is watched and stopped in order),
`runner`, `progress_view`; `outcomes` (what the commands leave behind); `paper` (what is printed there), `gather` (all
numbers), `claims` (what they show), and `pages` (the report) with `tables` and `pictures`, which are made of `charts`
and `radar`.
"""
