"""Imports TensorFlow, TFDS and SeqIO quietly, and hides the accelerators from them.

TensorFlow only loads data here; by default it would print a page of notes and reserve the memory of
every GPU. Other modules write `from protlm_jax.data.runtime import seqio, tf, tfds`.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from protlm_jax.errors import ProtlmError


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Drops what native code writes to the error stream.

    While it is loaded, TensorFlow reports missing CUDA libraries before it reads its own log level.
    TF_CPP_MIN_LOG_LEVEL=0 shows everything (JAX sets it to 1).
    """
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL") == "0":
        yield
        return
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


try:
    with _quiet():
        import seqio
        import tensorflow as tf
        import tensorflow_datasets as tfds
except ImportError as error:
    raise ProtlmError(
        f"records and SeqIO tasks need TensorFlow and SeqIO ({error}): "
        "pip install 'protlm-jax[data]'"
    ) from error

logging.getLogger("tensorflow").setLevel(logging.ERROR)
for _kind in ("GPU", "TPU"):
    # RuntimeError: TensorFlow was started by other code already.
    with contextlib.suppress(RuntimeError):
        tf.config.set_visible_devices([], _kind)

_ending = threading.Event()
_last_call = 0.0


def numpy_function(
    function: Callable[..., Any], tensors: Sequence[Any], dtypes: Sequence[Any]
) -> Any:
    """`tf.numpy_function`, stateless, so that an iterator over it can be saved.

    A call that TensorFlow begins while Python shuts down would never return; `_end` prevents it.
    """

    def call(*arrays: Any) -> Any:
        global _last_call
        _last_call = time.monotonic()
        if _ending.is_set():
            raise RuntimeError("Python is shutting down")
        return function(*arrays)

    return tf.numpy_function(call, tensors, dtypes, stateful=False)


@atexit.register
def _end() -> None:
    """Fails further calls, and waits (5 s at most) until TensorFlow makes none."""
    _ending.set()
    began = time.monotonic()
    while time.monotonic() - _last_call < 0.3 and time.monotonic() - began < 5:
        time.sleep(0.05)


__all__ = ["numpy_function", "seqio", "tf", "tfds"]
