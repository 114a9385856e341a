"""What goes through a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from protlm_jax.evaluation.embedding.embedder import Embedder


@pytest.fixture(scope="module")
def forwards() -> Iterator[list[str]]:
    """All sequences that go through a model, as often as they do."""
    seen: list[str] = []
    plain = Embedder.embed

    def counted(self: Embedder, sequences: Sequence[str], done: Any = ()) -> Iterator[Any]:
        seen.extend(sequences)
        yield from plain(self, sequences, done)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Embedder, "embed", counted)
        yield seen
