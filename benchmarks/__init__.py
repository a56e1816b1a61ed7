"""Speed and loss measured, one command each; a result is a JSON file with the machine and the command in it."""
