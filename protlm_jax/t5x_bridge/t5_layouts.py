"""The T5 of T5X's `examples/t5` and `examples/scalable_t5`, scanned or not, as ours.

Sizes come from the shapes of the parameters; the activation and the dropout rate from config.gin,
where there is one.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from protlm_jax.errors import ProtlmError
from protlm_jax.huggingface.tensor_files import StoredTensor
from protlm_jax.models import ModelConfig
from protlm_jax.models.exchange import Key
from protlm_jax.models.families import t5
from protlm_jax.models.families.t5 import t5_config
from protlm_jax.t5x_bridge.checkpoints import bound, literal
from protlm_jax.vocabularies import PROT_T5
from protlm_jax.vocabularies.files import FILE as VOCABULARY_FILE
from protlm_jax.vocabularies.files import read_vocabulary_file

log = logging.getLogger(__name__)

Tensors = dict[str, StoredTensor]

STACKS = ("encoder", "decoder")

# By T5X's name; its gelu is the tanh approximation.
_ACTIVATIONS = {"gelu": "gelu_tanh", "relu": "relu", "silu": "silu", "swish": "silu"}


def _attention(ours: str, theirs: str, norm: str) -> tuple[Key, ...]:
    inputs = tuple(
        Key(f"{ours}/{name}/kernel", f"{theirs}/{name}/kernel", "D H K -> D (H K)")
        for name in ("query", "key", "value")
    )
    out = Key(f"{ours}/out/kernel", f"{theirs}/out/kernel", "H K D -> (H K) D")
    return (*inputs, out, Key(f"{ours}_norm/scale", f"{norm}/scale", "D -> D"))


def _stack(stack: str, attention: str) -> tuple[Key, ...]:
    layer = stack + "/layers_{layer}"
    mlp = f"{layer}/mlp"
    return (
        *_attention(
            f"{stack}/attention", f"{layer}/{attention}", f"{layer}/pre_{attention}_layer_norm"
        ),
        *(
            Key(f"{stack}/mlp/{wi}/kernel", f"{mlp}/{wi}/kernel", "D F -> D F", optional=True)
            for wi in ("wi", "wi_0", "wi_1")
        ),
        Key(f"{stack}/mlp/wo/kernel", f"{mlp}/wo/kernel", "F D -> F D"),
        Key(f"{stack}/mlp_norm/scale", f"{layer}/pre_mlp_layer_norm/scale", "D -> D"),
        Key(f"{stack}_norm/scale", f"{stack}/{stack}_norm/scale", "D -> D"),
        Key(f"{stack}_relative_bias", f"{stack}/relpos_bias/rel_embedding", "R H -> H R"),
    )


_DECODER = "decoder/layers_{layer}"

# Our T5 under the names of examples/t5, to which the other layouts are brought first.
EXCHANGE = dataclasses.replace(
    t5.EXCHANGE,
    keys=(
        Key("embedder/token", "token_embedder/embedding", "V D -> V D"),
        *_stack("encoder", "attention"),
        *_stack("decoder", "self_attention"),
        *_attention(
            "decoder/cross_attention",
            f"{_DECODER}/encoder_decoder_attention",
            f"{_DECODER}/pre_cross_attention_layer_norm",
        ),
        Key("head_kernel", "decoder/logits_dense/kernel", "D V -> D V", optional=True),
    ),
)


def unified(checkpoint: Path, stored: Tensors) -> Tensors:
    """The tensors of any of the layouts as `examples/t5` has them.

    Raises:
        ProtlmError: they are not of an encoder-decoder of T5X's.
    """
    for name in ("token_embedder/embedding", "encoder/encoder_norm/scale"):
        if name not in stored:
            raise ProtlmError(
                f"{checkpoint}: tensor {name} is missing, so it holds no encoder-decoder of T5X's "
                f"examples; a model of protlm's own needs the config.gin or protlm_model.json that "
                f"was written beside its checkpoints"
            )
    width = stored["token_embedder/embedding"].shape[1]
    tensors = {name: _joined(name, x) for name, x in _unscanned(stored, width).items()}
    for stack in STACKS:
        table = "relpos_bias/rel_embedding"
        layers = (f"{stack}/layers_{i}/{table}" for i in range(_layers(stack, tensors)))
        own = [name for name in layers if name in tensors]
        if own and f"{stack}/{table}" not in tensors:
            tables = [tensors.pop(name) for name in own]
            tensors[f"{stack}/{table}"] = _one_bias(checkpoint, stack, tables)
    return tensors


def infer_config(checkpoint: Path, tensors: Tensors) -> ModelConfig:
    """The architecture from the shapes of `unified` and from config.gin beside the checkpoint.

    Raises:
        ProtlmError: no such T5, or nobody knows what its token ids mean.
    """

    def shape(name: str) -> tuple[int, ...]:
        if name not in tensors:
            raise ProtlmError(f"{checkpoint}: tensor {name} is missing: copy the checkpoint again")
        return tensors[name].shape

    vocab_size, width = shape("token_embedder/embedding")
    heads, buckets = shape("encoder/relpos_bias/rel_embedding")
    fields = {
        field: literal(checkpoint.parent, f"T5Config.{field}", value)
        for field, value in bound(checkpoint.parent, "T5Config").items()
        if field in ("mlp_activations", "dropout_rate")
    }
    gated = "encoder/layers_0/mlp/wi_0/kernel" in tensors
    return t5_config(
        vocabulary=_vocabulary(checkpoint, vocab_size),
        vocab_size=vocab_size,
        d_model=width,
        num_layers=_layers("encoder", tensors),
        num_decoder_layers=_layers("decoder", tensors),
        num_heads=heads,
        head_dim=shape("encoder/layers_0/attention/query/kernel")[1] // heads,
        d_ff=shape("encoder/layers_0/mlp/wo/kernel")[0],
        activation=_activation(checkpoint, fields.get("mlp_activations"), gated),
        gated_mlp=gated,
        tie_embeddings="decoder/logits_dense/kernel" not in tensors,
        relative_buckets=buckets,
        relative_max_distance=128,  # this and epsilon: constants of T5X's code
        norm_eps=1e-6,
        dropout_rate=float(fields.get("dropout_rate", 0.1)),
    )


def _layers(stack: str, tensors: Tensors) -> int:
    return len({n.split("/")[1] for n in tensors if n.startswith(f"{stack}/layers_")})


def _activation(checkpoint: Path, named: Any, gated: bool) -> str:
    """Our name of it; that of T5 1.1 or 1.0 without config.gin."""
    if named is None:
        named = ("gelu", "linear") if gated else ("relu",)
        log.warning(
            "%s has no config.gin that names the activation: taken to be %s, as in T5 %s",
            checkpoint.parent,
            named[0],
            "1.1" if gated else "1.0",
        )
    name, *rest = named
    if rest != ["linear"] * gated or name not in _ACTIVATIONS:
        raise ProtlmError(
            f"{checkpoint.parent / 'config.gin'}: mlp_activations {named!r} cannot be read; only "
            f"one of {', '.join(_ACTIVATIONS)}, alone or followed by 'linear', can"
        )
    return _ACTIVATIONS[name]


def _vocabulary(checkpoint: Path, rows: int) -> str:
    """Name of the vocabulary: that of vocabulary.json, or ProtT5's where the rows are its 128."""
    file = checkpoint.parent / VOCABULARY_FILE
    if file.exists():
        return read_vocabulary_file(file).name
    if rows != PROT_T5.size:
        raise ProtlmError(
            f"{checkpoint}: tensor token_embedder/embedding has {rows} rows, and nobody knows what "
            f"they mean: T5X does not store a vocabulary, and ProtT5's has {PROT_T5.size} tokens. "
            f"Write the tokens in the order of their ids as {file}"
        )
    log.warning("%s does not say which tokens it uses: taken to be ProtT5's 128", checkpoint.parent)
    return PROT_T5.name


def _unscanned(stored: Tensors, width: int) -> Tensors:
    """Arrays of scanned layers, "encoder/encoder/...", as one per layer."""
    plain: Tensors = {}
    for name, tensor in stored.items():
        stack, *inner = name.split("/", 2)
        if stack not in STACKS or inner[0] != stack:
            plain[name] = tensor
            continue
        norm = stored[f"{stack}/{stack}/pre_mlp_layer_norm/scale"].shape
        axis = 1 if norm[0] == width else 0  # param_scan_axis, 1 unless it was changed
        shape = tensor.shape[:axis] + tensor.shape[axis + 1 :]
        whole = functools.cache(tensor.read)
        for layer in range(tensor.shape[axis]):
            read = partial(_taken, whole, layer, axis)
            plain[f"{stack}/layers_{layer}/{inner[1]}"] = StoredTensor(tensor.file, shape, read)
    return plain


def _taken(whole: Callable[[], np.ndarray], layer: int, axis: int) -> np.ndarray:
    return np.asarray(np.take(whole(), layer, axis))


def _joined(name: str, tensor: StoredTensor) -> StoredTensor:
    """Kernels of attention with heads and their entries as one axis."""
    if len(tensor.shape) != 3 or not name.endswith("/kernel"):
        return tensor
    first, middle, last = tensor.shape
    shape = (first * middle, last) if name.endswith("/out/kernel") else (first, middle * last)
    return StoredTensor(tensor.file, shape, lambda: tensor.read().reshape(shape))


def _one_bias(checkpoint: Path, stack: str, layers: list[StoredTensor]) -> StoredTensor:
    """The table of relative positions of a stack whose layers have equal ones."""

    def read() -> np.ndarray:
        first, *others = [tensor.read() for tensor in layers]
        for layer, other in enumerate(others, start=1):
            if not np.array_equal(first, other):
                raise ProtlmError(
                    f"{checkpoint}: the layers of the {stack} have different relative position "
                    f"biases (tensors relpos_bias/rel_embedding of layers 0 and {layer}), as in "
                    f"UMT5. A T5 has one table for all, and so have protlm and Hugging Face's "
                    f"T5ForConditionalGeneration: this model cannot be written as one. Train with "
                    f"T5X's examples/t5 or a recipe of gin/, which share the table"
                )
        return first

    return dataclasses.replace(layers[0], read=read)
