"""Imports Apache Beam: says how to install it, and silences its warnings on import.

Beam warns of every package for Google's cloud that is not there, which is the rule.
"""

from __future__ import annotations

import logging

from protlm_jax.errors import ProtlmError

_disabled = logging.root.manager.disable
logging.disable(logging.WARNING)
try:
    import apache_beam as beam
except ImportError as error:
    raise ProtlmError(
        f"this needs Apache Beam ({error}): pip install 'protlm-jax[beam]'"
    ) from error
finally:
    logging.disable(_disabled)

__all__ = ["beam"]
