"""Generation: a trained model continues a text in the terminal.

In the order of use: `sampling` (how a token is chosen), `prompt` (the text to continue), `continuation` (the prompt's
tokens and those that follow), `streaming` (tokens into text) and `output` (text onto standard output). Nothing here
imports DeepSpeed, and what the flags alone can tell is told before torch is imported.
"""
