"""Looking inside trained models: what their maps do, and what enters the softmax.

In the order in which data flows: `subjects` (models, opened), `sample` and `tokens` (text as theirs), `indicators` and
`pre_softmax` (each takes a map in blocks of rows and holds no whole one), `collect` (a model over the sample); then
`findings` (means, what radar charts normalise by, and rows of both), `figures`, and `report` (the folder that they are
written to, and the table for the terminal).
"""
