"""Which machine this is, as far as it has to be said before JAX starts."""

from __future__ import annotations

import os
from pathlib import Path

PCI_DEVICES = Path("/sys/bus/pci/devices")
GOOGLE = "0x1ae0"  # the PCI vendor of TPU chips


def expect_no_tpu() -> None:
    """Where there is no TPU chip, keeps an installed libtpu from looking for one.

    `pip install 'protlm-jax[plan]'` brings libtpu to machines without a TPU. JAX then loads it at
    each start, and it prints errors about a pod that it does not find, and locks a file so that two
    processes get in each other's way. To be called before JAX's first use; environment variables
    that are set already stay.
    """
    vendors = (file.read_text().strip() for file in PCI_DEVICES.glob("*/vendor"))
    if GOOGLE in vendors:
        return
    for name, value in {
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v3-8",
        "TPU_WORKER_HOSTNAMES": "localhost",
    }.items():
        os.environ.setdefault(name, value)
