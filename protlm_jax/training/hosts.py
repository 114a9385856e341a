"""The data iterators' states of all hosts as one part of a checkpoint.

With token files all hosts have one state, from which any number of hosts can resume. Where each
host reads its own records, all states are kept.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence

import jax
import numpy as np

from protlm_jax.training.checkpoints import DamagedCheckpoint

# What parsing a damaged state raises.
_BROKEN = (
    *(zlib.error, ArithmeticError, AttributeError, LookupError),
    *(RecursionError, TypeError, ValueError),
)


def state_of_all(state: bytes) -> bytes:
    """The states of all hosts, joined; called by all of them."""
    if jax.process_count() == 1:
        return state
    from jax.experimental import multihost_utils

    sizes = multihost_utils.process_allgather(np.int32(len(state)))
    padded = np.frombuffer(state.ljust(int(sizes.max()), b"\0"), np.uint8)
    rows = multihost_utils.process_allgather(padded)
    return join([rows[i, :size].tobytes() for i, size in enumerate(sizes)])


def state_of_this(saved: bytes) -> bytes:
    """This host's part of a saved state."""
    return pick(saved, jax.process_index())


def join(states: Sequence[bytes]) -> bytes:
    """States of hosts 0, 1, ... in one; equal ones are kept once."""
    if len(set(states)) == 1:
        return states[0]
    return zlib.compress(json.dumps({"hosts": [state.hex() for state in states]}).encode())


def pick(saved: bytes, host: int) -> bytes:
    """The state of a host; for a new host another's, which its data will refuse.

    Raises DamagedCheckpoint where the bytes are no such state.
    """
    try:
        hosts = json.loads(zlib.decompress(saved)).get("hosts")
        return saved if hosts is None else bytes.fromhex(hosts[host % len(hosts)])
    except _BROKEN as error:
        raise DamagedCheckpoint(
            f"the checkpoint is damaged: the state of its data iterator cannot be read ({error})"
        ) from error
