"""Surgery: which layers of a trained model need attention, and the hybrid that keeps K of them, or fits a budget.

In the order in which data flows: :mod:`.request` (flags), :mod:`.subject` (the model and its text), :mod:`.activations`
(hidden states of all tokens at one depth), :mod:`.fitting` (a mixer in a layer's place, fitted to its output),
:mod:`.sensitivity` (the loss with it, layer by layer), :mod:`.folder` (what is known, a file a cell). Then
:mod:`.assignments` (a variant for each layer), :mod:`.budget` (what each costs), :mod:`.choice` (greedy, then swaps),
:mod:`.comparison` (the found hybrid beside patterns and random draws), :mod:`.results` and :mod:`.page`.
"""
