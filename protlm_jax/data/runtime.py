"""The one door to TensorFlow and SeqIO: imports them quietly and keeps them off the accelerators.

TensorFlow is only our data loader. Left alone it prints a page of notes on start-up and reserves
every GPU it finds, memory and all, from under JAX. Modules of this package write
`from protlm_jax.data.runtime import seqio, tf`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import warnings

# Must be set before the first import; who has set it, to debug TensorFlow, keeps their value.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import seqio
    import tensorflow as tf

logging.getLogger("tensorflow").setLevel(logging.ERROR)
for _kind in ("GPU", "TPU"):
    # RuntimeError: someone else has started TensorFlow before us, and it is too late to hide.
    with contextlib.suppress(RuntimeError):
        tf.config.set_visible_devices([], _kind)

__all__ = ["seqio", "tf"]
