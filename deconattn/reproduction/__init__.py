"""The paper's tables and figures again: plan, train what is missing, measure, and one page that shows it.

In the order in which things happen: `plans` (a table as runs and what is measured of each), `estimate` (what the runs
cost), `shards` (who does what); `layout` (the folder, and which of its files say that something is done), `commands`
(the command of each job), `locks`, `process` (a child that is watched and stopped in order), `runner`, `progress`;
`training`, `scores` and `indicators` (what the commands leave behind, each read in one place); `paper` (what is printed
there), `gather` (all numbers), `words` (what they show), and `pages` (the report) with `tables` and `pictures`, which
are made of `charts`, `radar` and `axes`.
"""
