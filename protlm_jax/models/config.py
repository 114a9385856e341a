"""One frozen description of a transformer, shared by every family."""

from __future__ import annotations

import dataclasses
import math
import numbers
from typing import Any, Literal

import jax.numpy as jnp

from protlm_jax.errors import ProtlmError
from protlm_jax.storage.typed import from_fields

Norm = Literal["layer_norm", "rms_norm"]
NormPlacement = Literal["pre", "post", "peri", "mix"]
Activation = Literal["gelu", "gelu_tanh", "relu", "silu"]
Positions = Literal["learned", "relative_bias", "relative_xl", "rotary"]
PositionInit = Literal["normal", "sinusoidal"]
RotaryPairs = Literal["halves", "neighbours"]
Remat = Literal["none", "minimal", "full"]
AttentionBackend = Literal["auto", "xla", "reference", "chunked"]


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Architecture of one model. A family file sets the fields; nothing else knows the family.

    Sizes are counts, rates are probabilities. `dtype` is the compute dtype: parameters are always
    float32, and so are softmax, norm statistics and logits.
    """

    family: str  # which file in models/families builds it
    vocabulary: str  # name of the token set, see protlm_jax.vocabularies
    vocab_size: int
    d_model: int
    num_layers: int  # encoder blocks
    num_heads: int
    head_dim: int
    d_ff: int
    num_decoder_layers: int = 0
    share_layers: bool = False  # one block's parameters serve all layers (ALBERT)
    embedding_size: int = 0  # width of a token table that is projected to d_model; 0: no projection
    generator_shrink: int = 0  # ELECTRA: the discriminator's sizes over its generator's
    norm: Norm = "layer_norm"
    norm_placement: NormPlacement = "pre"
    post_share: float = 0.25  # of "mix": the first layers, which are post-LN
    norm_scale: Literal["none", "inverse_sqrt_depth"] = "none"  # what the norm before sublayers
    # gives is divided by sqrt(l) in layer l from 1: LayerNorm Scaling (2502.05795)
    norm_eps: float = 1e-6
    activation: Activation = "gelu"
    gated_mlp: bool = False  # T5 v1.1: the activated projection times a second, linear one
    use_bias: bool = True
    attention_bias: bool = True  # of the four projections of attention, where there are biases
    qk_norm: bool = False  # ESM-C: queries and keys are normed, over all heads at once
    parallel_block: bool = False  # ProGen2: attention and MLP read one norm of the same stream
    residual_divisor: float = 1.0  # ESM-C: what a sublayer adds is divided by it
    branch_scale: float = 1.0  # what a sublayer adds is multiplied by it, and
    branch_power: float = 0.0  # by layers^-power: CompleteP 1; DeepNorm see docs/remedies.md
    branch_learned: Literal["none", "scalar", "channels"] = "none"  # branch_scale is where it
    # starts in each sublayer: SkipInit (2002.10444), LayerScale (2103.17239)
    init_depth: Literal["plain", "sqrt_2l", "deepnorm"] = "plain"  # maps back to the stream start
    # at 1/sqrt(2 layers) of their size; DeepNorm's: values and MLPs too, at (8 layers)^-1/4
    value_residual: Literal["none", "half", "learned"] = "none"  # values mixed with layer 1's
    long_skips: Literal["none", "unet"] = "none"  # layer l also adds w * what left L + 1 - l
    layer_drop: float = 0.0  # of the last layer while training; l / L of it of layer l
    positions: Positions = "learned"
    max_positions: int = 0  # rows of the learned table, or the longest row; 0 for no limit
    position_offset: int = 0  # rows of the learned table before that of position 0 (RoBERTa)
    position_init: PositionInit = "normal"  # what a learned table starts from
    rotary_dim: int = 0  # leading entries of each head that are turned; 0 for all
    rotary_pairs: RotaryPairs = "halves"  # an entry's partner: across the halves, or beside it
    type_vocab_size: int = 0
    relative_buckets: int = 0
    relative_max_distance: int = 0
    memory_length: int = 0  # Transformer-XL: tokens of earlier rows that each layer remembers
    same_length: bool = False  # every query sees memory_length tokens, itself among them, no more
    clamp_length: int = 0  # distances beyond it count as it; 0 for no limit
    token_dropout: bool = False  # ESM-2: <mask> embeds as zero, and what remains is scaled up
    attention_scale: bool = True  # divide scores by sqrt(head_dim); T5 folds it into the init
    tie_embeddings: bool = True
    scale_tied_logits: bool = False  # T5: decoder output times d_model**-0.5 before a tied head
    dropout_rate: float = 0.0
    mlp_dropout: bool = False  # T5 also drops between the activation and wo
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    remat: Remat = "none"
    attention_backend: AttentionBackend = "auto"  # a fused kernel where one can, else XLA
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        for field, allowed in _CHOICES.items():
            value = getattr(self, field)
            if value not in allowed:
                raise ProtlmError(
                    f"model.{field} is {value!r}; choose one of {', '.join(map(repr, allowed))}"
                )
        self._require_numbers()
        for field in ("vocab_size", "d_model", "num_layers", "num_heads", "head_dim", "d_ff"):
            if getattr(self, field) < 1:
                raise ProtlmError(f"model.{field} is {getattr(self, field)}; it must be at least 1")
        if self.same_length and not self.memory_length:
            raise ProtlmError("model.same_length needs a model.memory_length: it is what is seen")
        if self.positions == "rotary" and self.rotary_size % 2:
            field = "rotary_dim" if self.rotary_dim else "head_dim"
            raise ProtlmError(f"model.{field} is {self.rotary_size}; rotary positions need it even")
        if not 0 <= self.rotary_dim <= self.head_dim:
            raise ProtlmError(
                f"model.rotary_dim is {self.rotary_dim}; a head has {self.head_dim} entries"
            )
        if self.parallel_block and self.norm_placement not in ("pre", "peri"):
            raise ProtlmError("model.parallel_block needs model.norm_placement='pre' or 'peri'")
        self._require_remedies()
        if not 0.0 <= self.dropout_rate < 1.0:
            raise ProtlmError(f"model.dropout_rate is {self.dropout_rate}; it must be in [0, 1)")
        if self._least_parameters() > _MOST_PARAMETERS:
            raise ProtlmError(
                f"the model has about {self._least_parameters():.1e} parameters, more than any "
                f"machine holds: check d_model {self.d_model}, d_ff {self.d_ff}, num_layers "
                f"{self.num_layers}, num_heads {self.num_heads}, head_dim {self.head_dim}, "
                f"vocab_size {self.vocab_size} and max_positions {self.max_positions}"
            )

    def _require_remedies(self) -> None:
        """What is set for the sake of depth is defined for this model."""
        if self.norm_scale != "none" and not self.adds_alone:
            raise ProtlmError("model.norm_scale needs model.norm_placement='pre' or 'peri'")
        for field in ("post_share", "layer_drop"):
            if not 0.0 <= getattr(self, field) < 1.0:
                raise ProtlmError(f"model.{field} is {getattr(self, field)}; it must be in [0, 1)")
        for field in ("value_residual", "long_skips"):
            if getattr(self, field) != "none" and self.positions == "relative_xl":
                raise ProtlmError(
                    f"model.{field} is not defined for {self.family}, whose layers also read the "
                    f"streams of earlier rows, or a second stream"
                )
        if self.long_skips != "none" and 1 in (self.num_layers, self.num_decoder_layers):
            raise ProtlmError("model.long_skips needs at least two layers")

    def _require_numbers(self) -> None:
        """Every field has a value of its type, and every count fits its range."""
        for field in dataclasses.fields(self):
            value, name = getattr(self, field.name), f"model.{field.name}"
            if field.type == "bool" and not isinstance(value, bool):
                raise ProtlmError(f"{name} is {value!r}; it must be True or False")
            if field.type == "str" and not isinstance(value, str):
                raise ProtlmError(f"{name} is {value!r}; it must be text")
            if field.type == "float" and not _is_finite(value):
                raise ProtlmError(f"{name} is {value!r}; it must be a finite number")
            if field.type != "int":
                continue
            most = _MOST_LAYERS if field.name.endswith("_layers") else _LARGEST
            if isinstance(value, bool) or not isinstance(value, numbers.Integral):
                raise ProtlmError(f"{name} is {value!r}; it must be a whole number")
            if int(value) < 0:
                raise ProtlmError(f"{name} is {value}; 0 is the least")
            if int(value) > most:
                raise ProtlmError(f"{name} is {value}; {most} is the most")

    def _least_parameters(self) -> int:
        """Parameters of the blocks and tables, biases and norms left out."""
        blocks = 1 if self.share_layers else self.num_layers + self.num_decoder_layers
        block = 4 * self.d_model * self.num_heads * self.head_dim + 2 * self.d_model * self.d_ff
        tables = (self.vocab_size + self.position_rows) * self.embedding_width
        return int(blocks * block + tables)

    @property
    def compute_dtype(self) -> jnp.dtype:
        return jnp.dtype(self.dtype)

    @property
    def adds_alone(self) -> bool:
        """Whether a block adds to its stream and leaves it otherwise alone."""
        return self.norm_placement in ("pre", "peri")

    @property
    def counts_layers(self) -> bool:
        """Whether what a block computes depends on its number, on how many there are, or on other
        blocks' values, beside its parameters and the stream."""
        other = (self.norm_scale, self.value_residual, self.long_skips)
        return other != ("none",) * 3 or self.norm_placement == "mix" or self.branch_power != 0.0

    @property
    def init_gains(self) -> tuple[float, float]:
        """Factors on the initial size of the maps back to the stream, and of values and the MLP's
        first maps; see `init_depth`."""
        if self.init_depth == "deepnorm":
            return ((8 * self.num_layers) ** -0.25,) * 2
        return ((2 * self.num_layers) ** -0.5 if self.init_depth == "sqrt_2l" else 1.0), 1.0

    @property
    def position_rows(self) -> int:
        """Rows of a learned position table."""
        return self.max_positions + self.position_offset

    @property
    def rotary_size(self) -> int:
        """Entries of each head that rotary positions turn."""
        return self.rotary_dim or self.head_dim

    @property
    def embedding_width(self) -> int:
        """Columns of the token table."""
        return self.embedding_size or self.d_model

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> ModelConfig:
        """Builds a config from saved fields.

        Raises:
            ProtlmError: for a field that does not exist here or is missing, naming it, or for a
                value of another type.
        """
        return from_fields(cls, fields, "model")

    def replace(self, **changes: Any) -> ModelConfig:
        return dataclasses.replace(self, **changes)


def _is_finite(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond every float
        return False


_LARGEST = 2**31 - 1
_MOST_LAYERS = 10_000
_MOST_PARAMETERS = 10**13

_CHOICES: dict[str, tuple[Any, ...]] = {
    "norm": ("layer_norm", "rms_norm"),
    "norm_placement": ("pre", "post", "peri", "mix"),
    "norm_scale": ("none", "inverse_sqrt_depth"),
    "branch_learned": ("none", "scalar", "channels"),
    "init_depth": ("plain", "sqrt_2l", "deepnorm"),
    "value_residual": ("none", "half", "learned"),
    "long_skips": ("none", "unet"),
    "activation": ("gelu", "gelu_tanh", "relu", "silu"),
    "positions": ("learned", "relative_bias", "relative_xl", "rotary"),
    "position_init": ("normal", "sinusoidal"),
    "rotary_pairs": ("halves", "neighbours"),
    "dtype": ("float32", "bfloat16", "float16"),
    "remat": ("none", "minimal", "full"),
    "attention_backend": ("auto", "xla", "reference", "chunked"),
}
