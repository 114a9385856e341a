"""Memory and time of a train step by rule of thumb: which settings are worth compiling at all.

The memory of the repository's recipes on the pods of their papers is told within a third, mostly as
too little; time is good for an order only. What a plan says comes from the compiler instead.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from protlm_jax.config.run import RunConfig
from protlm_jax.models.flops import training_flops_per_token
from protlm_jax.training.mesh_choice import state_and_gradients
from protlm_jax.training.state import TrainState

# FLOPs in the time of one byte sent to a neighbour: 1.23e14 / 2e11 for a TPU v3 chip.
FLOPS_PER_BYTE_SENT = 615
# Passes over a model computed for the three (one forward, two backward) that count.
EXECUTED = {"none": 3.0, "minimal": 3.1, "full": 4.0}


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a search varies.

    Attributes:
        data, fsdp, tensor: sizes of the mesh, of one slice.
        accumulate: parts of a batch, one after the other.
        remat: see `ModelConfig`.
    """

    data: int
    fsdp: int
    tensor: int
    accumulate: int
    remat: Any

    def applied(self, config: RunConfig) -> RunConfig:
        """The run with this setting."""
        mesh = dataclasses.replace(
            config.mesh, auto=False, data=self.data, fsdp=self.fsdp, tensor=self.tensor
        )
        return dataclasses.replace(
            config,
            model=config.model.replace(remat=self.remat),
            train=dataclasses.replace(config.train, accumulate=self.accumulate),
            mesh=mesh,
        )

    def overrides(self, phase: str = "") -> str:
        """What gives it on the command line."""
        where = f"--config.phases.{phase}." if phase else "--config."
        return " ".join(
            f"{where}{field}={value}"
            for field, value in (
                ("mesh.data", -1),
                ("mesh.fsdp", self.fsdp),
                ("mesh.tensor", self.tensor),
                ("train.accumulate", self.accumulate),
                ("model.remat", self.remat),
            )
        )


def tokens_at_once(config: RunConfig, setting: Setting, slices: int) -> int:
    """Tokens of a part of a batch that a device, or the devices of a `tensor` axis, compute."""
    replicas = slices * setting.data * setting.fsdp
    return config.train.batch_size // setting.accumulate // replicas * config.data.length


def fixed_bytes(setting: Setting, abstract: TrainState, axes: Any, slices: int) -> int:
    """Bytes on one device of state and gradients."""
    sizes = {"data": slices * setting.data, "fsdp": setting.fsdp, "tensor": setting.tensor}
    return state_and_gradients(abstract, axes, sizes)


def activation_bytes(config: RunConfig, setting: Setting, slices: int) -> int:
    """Bytes of activations: of all layers what is kept, of one what is made again."""
    tokens = tokens_at_once(config, setting, slices)
    model, tensor = config.model, setting.tensor
    layers = model.num_layers + model.num_decoder_layers
    inner = model.num_heads * model.head_dim // tensor
    hidden = model.d_ff // tensor
    width = model.d_model
    products = 3 * inner + 2 * width + hidden * (2 if model.gated_mlp else 1)
    keys = config.data.length + model.memory_length
    scores = max(model.num_heads // tensor, 1) * keys
    if model.positions == "relative_xl":  # of each distance, and of each key, forward and shifted
        scores *= 3
    size = model.compute_dtype.itemsize
    # Norms go through float32, the MLP's activation is kept beside its argument, and scores are
    # kept in float32 and as weights.
    everything = size * (products + 3 * width + hidden) + 4 * 2 * width + (4 + size) * scores
    kept = {
        "none": everything + 2 * 4 * scores,  # what softmax is of, and its exponentials
        "minimal": size * (width + products),
        "full": size * width,
    }[setting.remat]
    return tokens * (layers * kept + 2 * everything + 3 * 4 * model.vocab_size)


def relative_time(config: RunConfig, setting: Setting, parameters: int, slices: int) -> float:
    """A step's time on one device, in FLOPs: products, and bytes sent as what they would cost."""
    model, length = config.model, config.data.length
    tokens = tokens_at_once(config, setting, slices) * setting.accumulate
    flops = training_flops_per_token(model, length) / 3 * EXECUTED[setting.remat]
    computed = tokens * flops / setting.tensor
    passes = 3 if setting.remat == "full" else 2  # for which parameters are gathered
    size, own = model.compute_dtype.itemsize, parameters / setting.tensor
    sent = 0.0
    if setting.fsdp > 1:
        sent += setting.accumulate * (passes + 1) * size * own
    if setting.data * slices > 1:
        sent += 2 * size * own / setting.fsdp
    if setting.tensor > 1:
        layers = model.num_layers + model.num_decoder_layers
        sent += tokens * layers * 2 * (passes + 1) * 2 * size * model.d_model
    return computed + sent * FLOPS_PER_BYTE_SENT
