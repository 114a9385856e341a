"""What is computed of each protein: which layers, which vectors, in which dtype."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import jax.numpy as jnp
import numpy as np

from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation.parts import Arrays as Arrays
from protlm_jax.models.loaded import LoadedModel

Vectors = Literal["residues", "mean", "max", "cls"]
Dtype = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class EmbeddingSpec:
    """What is computed of each protein.

    Attributes:
        layers: depths, see `resolve_layers`.
        vectors: "residues" ([layers, residues, d_model]); "mean" and "max" over residues, or
            "cls", the classification token ([layers, d_model] each). The axis of layers is left out
            where there is one.
        dtype: of the results; pooling is done in float32.
    """

    layers: tuple[int, ...]
    vectors: tuple[Vectors, ...]
    dtype: Dtype = "float32"

    def __post_init__(self) -> None:
        for name in self.vectors:
            if name not in get_args(Vectors):
                raise ProtlmError(f"no vectors {name!r}: there are {', '.join(get_args(Vectors))}")
        if not self.layers or not self.vectors or len(set(self.vectors)) < len(self.vectors):
            raise ProtlmError("name at least one layer, and each kind of vectors once")
        if self.dtype not in get_args(Dtype):
            raise ProtlmError(f"no dtype {self.dtype!r}: there are {', '.join(get_args(Dtype))}")

    def shape(self, vectors: str, residues: int, width: int) -> tuple[int, ...]:
        """Of one protein's array."""
        each = (residues, width) if vectors == "residues" else (width,)
        return each if len(self.layers) == 1 else (len(self.layers), *each)

    def nbytes(self, width: int, proteins: int, residues: int) -> int:
        """Bytes of all results together."""
        each = len(self.layers) * width * self.numpy_dtype.itemsize
        pooled = sum(name != "residues" for name in self.vectors)
        return each * (residues * ("residues" in self.vectors) + pooled * proteins)

    @property
    def numpy_dtype(self) -> np.dtype:
        return np.dtype(jnp.dtype(self.dtype))


def resolve_layers(loaded: LoadedModel, asked: str | Sequence[int]) -> tuple[int, ...]:
    """Depths from 0 to the number of blocks, for "last", "all" or numbers (-1 is the last).

    Layer 0 is the embedding of the tokens before the first block, layer i the stream after i
    blocks; the last one, with the final norm where the family has one, is what is usually called
    the embedding. Of an encoder-decoder the encoder is read.

    Raises:
        ProtlmError: a layer that the model does not have, or one that is named twice.
    """
    depth = loaded.config.num_layers
    if asked == "last":
        return (depth,)
    if asked == "all":
        return tuple(range(depth + 1))
    if isinstance(asked, str):
        raise ProtlmError(f"layers {asked!r}: write last, all, or numbers")
    for layer in asked:
        if not -depth - 1 <= layer <= depth:
            raise ProtlmError(
                f"{loaded.name} has no layer {layer}: they go from 0 (before the first block) to "
                f"{depth} (the last), or from -{depth + 1} to -1"
            )
    layers = tuple(layer % (depth + 1) for layer in asked)
    if len(set(layers)) < len(layers):
        raise ProtlmError(f"a layer is asked for twice: {', '.join(map(str, layers))}")
    return layers
