"""Exceptions whose messages are meant for the user."""

from __future__ import annotations

from collections.abc import Sequence

_LISTED = 10  # about as many as the length of a message allows


class ProtlmError(Exception):
    """An error that the user can fix: the message says what is wrong, where, and what to do.

    The command line prints the message without a stack trace and exits with code 1. Of a very long
    message, which quotes something long, the beginning and the end are shown.
    """

    def __str__(self) -> str:
        text = super().__str__()
        return text if len(text) <= 3000 else f"{text[:2000]} [...] {text[-900:]}"


def one_error(errors: Sequence[ProtlmError]) -> ProtlmError:
    """One error for all records that cannot be used, of which the first ones are listed."""
    if len(errors) == 1:
        return errors[0]
    lines = [f"{len(errors):,} records cannot be used", *map(str, errors[:_LISTED])]
    lines += [f"and {len(errors) - _LISTED:,} more"] if len(errors) > _LISTED else []
    return ProtlmError("\n  ".join(lines))


class Stopped(BaseException):
    """A command received SIGTERM and has saved its work; the same command goes on from there.

    Like KeyboardInterrupt it may be raised anywhere, and no `except Exception` catches it. The
    command line prints the message and exits with this code (EX_TEMPFAIL of sysexits.h), which asks
    a launcher to start the same command again.
    """

    EXIT_CODE = 75
