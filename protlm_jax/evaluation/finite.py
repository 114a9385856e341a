"""Where NaN or infinity first appears when a model reads a protein, and the error that says so."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation.engine import Engine, features, max_residues
from protlm_jax.models.loaded import LoadedModel

_PARAMETER = "the parameter"
# Parameters that a model's own streams and logits do not depend on.
_ASIDE = ("contact_head", "generator")


class NotFinite(ProtlmError):
    """A model gives NaN or infinity for a protein.

    Attributes:
        record: the protein's name.
        everywhere: whether the weights are broken, which affects all proteins.
    """

    def __init__(self, message: str, record: str, everywhere: bool) -> None:
        super().__init__(message)
        self.record, self.everywhere = record, everywhere


def require_finite(
    loaded: LoadedModel, values: np.ndarray, sequence: str, record: str, what: str
) -> None:
    """Raises `not_finite` where a model's values for a protein are not all finite."""
    if not np.isfinite(values).all():
        raise not_finite(loaded, sequence, record, what)


def not_finite(
    loaded: LoadedModel, sequence: str, record: str, what: str = "the result"
) -> NotFinite:
    """The error for a protein (normalised `sequence`) whose `what` is not finite."""
    why = reason(loaded, sequence)
    everywhere = why.startswith(_PARAMETER)
    return NotFinite(f"{record!r}: {what} is not finite: {why}", record, everywhere)


def reason(loaded: LoadedModel, sequence: str) -> str:
    """Why a model's result for a protein is not finite, and what to do about it."""
    place = first_not_finite(loaded, sequence)
    if place.startswith(_PARAMETER):
        return f"{place}; the weights of {loaded.name} are broken: copy or export them again"
    dtype = loaded.config.dtype
    place = f"{place} is the first that holds NaN or infinity" if place else "the model is finite"
    if dtype != "float32":
        return f"{place}, in {dtype}, and all parameters are finite: compute in fp32"
    return f"{place}, and all parameters are finite: values exceed the range of {dtype}"


def first_not_finite(loaded: LoadedModel, sequence: str) -> str:
    """The first parameter, else stream, else "the logits" that is not finite; "" without one.

    Normalised sequences that are longer than the position table are read in pieces.
    """
    flat = flatten_dict(loaded.params, sep="/")
    names = [name for name in flat if name.split("/")[0] not in _ASIDE]
    if place := _first_parameter(loaded, flat, names):
        return place
    length = max_residues(loaded) or max(1, len(sequence))
    for start in range(0, len(sequence), length):
        if place := _first_stream(loaded, sequence[start : start + length]):
            return place
    return _first_parameter(loaded, flat, [name for name in flat if name not in names])


def _first_parameter(loaded: LoadedModel, flat: dict[str, Any], names: list[str]) -> str:
    """The first of these parameters that is not finite, with its layer."""
    for name in names:
        finite = jnp.isfinite(flat[name])
        if count := int(finite.size - finite.sum()):
            numbers = "1 number that is" if count == 1 else f"{count:,} numbers that are"
            place = f"{_PARAMETER} {name} holds {numbers} not finite"
            if name.split("/")[0] not in loaded.model.stack_names:
                return place
            layers = np.flatnonzero(~np.asarray(finite).reshape(len(finite), -1).all(axis=1))
            blocks = f"from block {layers[0]} on" if len(layers) > 1 else f"block {layers[0]}"
            return f"{place} ({blocks})"
    return ""


def _first_stream(loaded: LoadedModel, sequence: str) -> str:
    """The first stream that is not finite, or "the logits"."""
    tokens, engine = loaded.vocabulary.encode(sequence), Engine(loaded)
    (batch,) = engine.one_a_row([len(tokens)], None)
    found = jax.device_get(engine(_finite, features(loaded, batch, [tokens])))
    for stack in loaded.model.stack_names:
        for depth, finite in enumerate(found[stack]):
            if not finite:
                where = f"after block {depth - 1}" if depth else "before block 0"
                return f"the stream {where} of the {stack}"
    return "" if found["logits"] else "the logits"


def _finite(model: Any, params: Any, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Stack -> [layers + 1] bool, whether the stream is finite at each depth; and "logits"."""
    run = functools.partial(model.apply, {"params": params})
    side = "" if "segment_ids" in batch else "encoder_"
    padding = batch[f"{side}segment_ids"][..., None] == 0

    def finite(x: Any) -> jax.Array:
        return jnp.all(jnp.isfinite(x) | padding)

    def visit(carry: jax.Array, index: jax.Array, before: Any, after: Any, taps: Any) -> jax.Array:
        return carry.at[index + 1].set(finite(after))

    h, context = run(batch, method="embed")
    found, out = {}, {}
    for stack in model.stack_names:
        layers = model.bind({"params": params}).rows(stack)[0].num_layers
        carry = jnp.ones(layers + 1, bool).at[0].set(finite(h[stack]))
        out[stack], found[stack] = run(
            stack, h[stack], context[stack], 0, visit, carry, method="resume"
        )
        context = run(out, context, method="connect")
    found["logits"] = jnp.asarray(True)
    if model.readouts[0].kind != "none":
        found["logits"] = finite(run(out, method="head"))
    return found
