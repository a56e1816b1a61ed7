"""Exception that a user is meant to read."""


class UserError(Exception):
    """Error in what the user gave: a flag, a file, a checkpoint, a topology.

    The message is one line that names the offender and the remedy. Command lines print it
    as ``error: MESSAGE`` and exit with code 2 (see :mod:`deconattn.cli`); no traceback.
    """
