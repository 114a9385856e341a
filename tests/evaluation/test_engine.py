"""One engine runs the model for all verbs: products in float32, and errors that say what to do."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest
from zoo import loaded

from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation import contacts, detection, engine, finite, heldout, noise
from protlm_jax.evaluation.embedding.sequences import embed_sequences
from protlm_jax.evaluation.scoring.score import likelihoods

PROTEINS = {"p1": "MKTAYIAKQRQISFVKSHFSRQ", "p2": "MSILVTRPSPAGEELVSRLRT"}


def products(jaxpr: Any) -> list[Any]:
    """The precision of every product of a program, those of its loops and calls included."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            found.append(equation.params["precision"])
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else [value]:
                if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                    found += products(getattr(inner, "jaxpr", inner))
    return found


READERS = {
    "embed": lambda m: list(embed_sequences(m, PROTEINS, layers="all", devices=1)),
    "score": lambda m: list(likelihoods(m, PROTEINS.values())),
    "heldout": lambda m: heldout.evaluate(m, PROTEINS, np.full(20, 0.05), 0),
    "generate": lambda m: noise.generate(m, ["MK____"], steps=2),
    "contacts": lambda m: list(
        contacts.predict(m, PROTEINS, weights=contacts.Weights(np.ones((2, 2), np.float32), 0.0))
    ),
    "finite": lambda m: finite.first_not_finite(m, PROTEINS["p1"]),
}
CASES = [*((verb, "bert") for verb in READERS), ("score", "transformer_xl"), ("score", "t5")]


@pytest.mark.parametrize(("verb", "family"), [*CASES, ("detect", "electra")])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_reading_in_float32_multiplies_in_float32(
    verb: str, family: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU the default is TensorFloat32, on a TPU bfloat16."""
    seen: list[Any] = []
    run = engine._run

    def traced(*arguments: Any) -> Any:
        jaxpr = jax.make_jaxpr(run, static_argnums=(0, 1, 2, 3))(*arguments)
        seen.extend(products(jaxpr.jaxpr))
        return run(*arguments)

    monkeypatch.setattr(engine, "_run", traced)
    model = loaded(family).with_config(dtype=dtype)
    if verb == "detect":
        detection.evaluate(model, PROTEINS, 0)
    else:
        READERS[verb](model)
    highest = (jax.lax.Precision.HIGHEST, jax.lax.Precision.HIGHEST)
    assert len(seen) >= 8
    assert set(seen) == {highest} if dtype == "float32" else highest not in seen


def test_too_little_memory_is_an_error_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> Any:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

    monkeypatch.setattr(engine, "_run", full)
    for read in (READERS["embed"], READERS["score"], READERS["heldout"]):
        with pytest.raises(ProtlmError, match="tokens: choose fewer tokens per batch"):
            read(loaded("bert"))
