"""Text to ids and back: `tokenizer` (the libraries behind one interface), `fast` (gigatoken in front of them, with
`disagreements` to tell where it may differ), `training` (new ones from a corpus).
"""
