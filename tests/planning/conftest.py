"""What all tests that compile for pods need."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import pytest


@pytest.fixture(autouse=True)
def no_cache() -> Iterator[None]:
    """JAX keeps programs for pods in its cache, but cannot read them back without the pod."""
    name = "jax_persistent_cache_min_compile_time_secs"
    before = getattr(jax.config, name)
    jax.config.update(name, 1e9)
    yield
    jax.config.update(name, before)
