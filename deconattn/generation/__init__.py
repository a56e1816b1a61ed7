"""Generation: a trained model continues a text in the terminal.

In the order of use: `sampling` (how a token is chosen), `text_io` (the text to continue, and text onto standard
output) and `continuation` (the prompt's tokens, those that follow, and their text). Nothing here imports DeepSpeed, and
what the flags alone can tell is told before torch is imported.
"""
