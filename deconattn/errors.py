"""Exception that a user is meant to read."""

import errno


class UserError(Exception):
    """Error in what the user gave: a flag, a file, a checkpoint, a topology.

    The message is one line that names the offender and the remedy. Command lines print it
    as ``error: MESSAGE`` and exit with code 2 (see :mod:`deconattn.cli`); no traceback.
    """


FULL = (errno.ENOSPC, errno.EDQUOT)


def of_the_disk(error: OSError, place: object) -> UserError:
    """Return what an OSError means to a user: a full disk, no permission, a path that leads nowhere.

    Args:
        place: the file or folder where the error names none.
    """
    if error.errno in FULL:
        return UserError(f"{place}: no space left on the disk; free some or give another folder")
    if isinstance(error, PermissionError) or error.errno == errno.EROFS:
        return UserError(f"{error.filename or place}: no permission; change it or give another path")
    return UserError(f"{error.filename or place}: {error.strerror or error}; check it or give another path")
