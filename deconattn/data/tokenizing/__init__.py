"""Text to ids and back: `tokenizer` (the libraries behind one interface, whose separator `settings` chooses and whose
`fingerprints` corpora know), `fast` (gigatoken in front of them, with `disagreements` to tell where it may differ),
`panics` and `memory` (where a library gives up), `training` (new ones from a corpus).
"""
