"""Looking inside trained models: what their maps do, and what enters the softmax.

In the order in which data flows: `subjects` (models, opened), `sample` and `tokens` (text as theirs), `indicators` and
`pre_softmax` (each takes a map in blocks of rows and holds no whole one), `passes` (a model over a batch, its mixers
watched), `collect` (a model over the sample). Mechanisms: `induction` (heads on repeated tokens), `losses` (loss by
position), `ablation` (loss without a mixer or a head), `agreement` (CKA of maps). Then `findings` and `mechanism_rows`
(means, what radar charts normalise by, and rows), `figures` and `mechanism_figures`, and `report` (the folder that they
are written to, and the tables).
"""
