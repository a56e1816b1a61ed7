"""Generation: a trained model continues a text in the terminal.

In the order of use: `sampling` (how a token is chosen), `text_io` (the text to continue, and text onto standard
output), `continuation` (the prompt's tokens and those that follow) and `streaming` (tokens into text). Nothing here
imports DeepSpeed, and what the flags alone can tell is told before torch is imported.
"""
