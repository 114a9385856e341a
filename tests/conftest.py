"""Test session set-up: eight simulated CPU devices, strict shapes, a compilation cache."""

from __future__ import annotations

import importlib.util
import mmap
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".cache/jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")

import jax
import numpy as np
import pytest

from protlm_jax.process.platforms import expect_no_tpu

# Programs here are compiled once and run for milliseconds: these flags save three quarters of the
# time. Where XLA_FLAGS is set, even empty, it stays: `make test-exact` runs with the defaults. XLA
# reads them with the first program.
FLAGS = {
    "xla_backend_optimization_level": "0",
    "xla_cpu_use_fusion_emitters": "false",
    "xla_cpu_opt_preset": "CPU_OPT_PRESET_FAST_COMPILE",
    "xla_cpu_parallel_codegen_split_count": "1",
}


def known_flags() -> str:
    """Those of FLAGS whose name stands in jaxlib: XLA ends the process at any other."""
    spec = importlib.util.find_spec("jaxlib")
    assert spec is not None and spec.origin is not None
    (library,) = Path(spec.origin).parent.glob("libjax_common.*")
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        known = [name for name in FLAGS if text.find(name.encode() + b"\0") >= 0]
    return " ".join(f"--{name}={FLAGS[name]}" for name in known)


if "XLA_FLAGS" not in os.environ:
    os.environ["XLA_FLAGS"] = known_flags()

expect_no_tpu()  # for processes that tests start, too
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_report_header() -> str:
    return f"compiler flags: {os.environ['XLA_FLAGS'] or 'the defaults'}"


MOST_MEMORY = 5 << 30  # bytes of a worker, of which there are as many as cores


@pytest.fixture(scope="module", autouse=True)
def memory_is_given_back() -> Iterator[None]:
    """Compiled programs stay until someone clears them; on disk they stay anyway."""
    yield
    statm = Path("/proc/self/statm")  # of Linux
    pages = int(statm.read_text().split()[1]) if statm.exists() else 0
    if pages * os.sysconf("SC_PAGE_SIZE") > MOST_MEMORY:
        jax.clear_caches()


@pytest.fixture(scope="session")
def assert_close() -> Callable[..., None]:
    """Compares arrays or trees relative to the scale of what is compared."""

    def compare(actual: Any, expected: Any, tolerance: float, message: str = "") -> None:
        def one(a: Any, b: Any) -> None:
            a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
            assert a.shape == b.shape, f"{message}: shapes {a.shape} and {b.shape}"
            difference, scale = np.abs(a - b).max(), np.abs(b).max()
            assert difference <= tolerance * scale, f"{message}: {difference} of {scale}"

        jax.tree.map(one, actual, expected)

    return compare
