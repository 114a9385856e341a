"""The one exception whose message is meant for the user."""

from __future__ import annotations


class ProtlmError(Exception):
    """Something the user can mend: says what is wrong, where, and what to do about it.

    The command line prints the message alone, without a stack trace, and exits with code 1.
    """
