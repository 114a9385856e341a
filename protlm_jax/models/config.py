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
NormPlacement = Literal["pre", "post"]
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
    norm_eps: float = 1e-6
    activation: Activation = "gelu"
    gated_mlp: bool = False  # T5 v1.1: the activated projection times a second, linear one
    use_bias: bool = True
    attention_bias: bool = True  # of the four projections of attention, where there are biases
    qk_norm: bool = False  # ESM-C: queries and keys are normed, over all heads at once
    parallel_block: bool = False  # ProGen2: attention and MLP read one norm of the same stream
    residual_divisor: float = 1.0  # ESM-C: what a sublayer adds is divided by it
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
        if self.parallel_block and self.norm_placement == "post":
            raise ProtlmError("model.parallel_block needs model.norm_placement='pre'")
        if not 0.0 <= self.dropout_rate < 1.0:
            raise ProtlmError(f"model.dropout_rate is {self.dropout_rate}; it must be in [0, 1)")
        if self._least_parameters() > _MOST_PARAMETERS:
            raise ProtlmError(
                f"the model has about {self._least_parameters():.1e} parameters, more than any "
                f"machine holds: check d_model {self.d_model}, d_ff {self.d_ff}, num_layers "
                f"{self.num_layers}, num_heads {self.num_heads}, head_dim {self.head_dim}, "
                f"vocab_size {self.vocab_size} and max_positions {self.max_positions}"
            )

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
    "norm_placement": ("pre", "post"),
    "activation": ("gelu", "gelu_tanh", "relu", "silu"),
    "positions": ("learned", "relative_bias", "relative_xl", "rotary"),
    "position_init": ("normal", "sinusoidal"),
    "rotary_pairs": ("halves", "neighbours"),
    "dtype": ("float32", "bfloat16", "float16"),
    "remat": ("none", "minimal", "full"),
    "attention_backend": ("auto", "xla", "reference", "chunked"),
}
