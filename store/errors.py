"""The errors that a person is meant to read: one line that says what happened, where, and what to do next.

The command line prints their message without a traceback and exits with `exit_code`. Any other exception is
a fault of ours and keeps its traceback.
"""


class ThresherError(Exception):
    """Base of every error that the user can do something about."""

    exit_code = 4


class InputError(ThresherError):
    """What was given cannot be used: a file, an option, a column, a model."""

    exit_code = 4


class IncompleteError(ThresherError):
    """The work stopped before its end; what was published is kept and a rerun goes on from there."""

    exit_code = 2


class DamageError(ThresherError):
    """Something stored is not what was stored: a checksum, a size or a file is wrong."""

    exit_code = 1


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
