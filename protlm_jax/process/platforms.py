"""Settings of the machine that must be made before JAX starts."""

from __future__ import annotations

import os
from pathlib import Path

PCI_DEVICES = Path("/sys/bus/pci/devices")
GOOGLE = "0x1ae0"  # the PCI vendor of TPU chips


def expect_no_tpu() -> None:
    """Stops an installed libtpu from looking for a TPU where there is none; call it before JAX.

    JAX loads libtpu (of `protlm-jax[plan]`) at each start; without a TPU it prints errors, and
    locks a file that other processes need. Environment variables that are set already stay.
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
