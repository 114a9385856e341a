"""What is trained of a model, and what stays frozen: adapters, the last layers, a head alone.

A run keeps two trees: `base`, which no gradient and no optimizer reaches, and what is trained.
Adapters are stacked by layer like the kernels beside which they stand in the tree:

    lora   W + alpha/rank A B                           (Hu et al. 2021)
    dora   magnitude * column(W + alpha/rank A B)       (Liu et al. 2024), of unit columns
    ia3    scale * W: of what a map puts out, of the MLP's second map of what it takes in
           (Liu et al. 2022)
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from protlm_jax.errors import ProtlmError
from protlm_jax.models.axes import NamedAxes
from protlm_jax.models.build import init_boxed
from protlm_jax.models.exchange import CONTACT_HEAD
from protlm_jax.models.merging import column_norms, merged

Params = Any
Names = tuple[str, ...]
Path = tuple[str, ...]

TASK_HEAD = "task_head"  # the parameters of a head beside those of the model
ADAPTERS = ("lora", "dora", "ia3")
_AFTER = ("final_norm", "encoder_norm", "decoder_norm", TASK_HEAD)  # the last layers
_INPUTS = ("wo",)  # maps of which IA3 scales what they take in


@dataclasses.dataclass(frozen=True)
class TuneConfig:
    """What is trained of the model that a run starts from.

    Attributes:
        method: "all" parameters; "lora", "dora" or "ia3", adapters beside the frozen model; the
            "last" layers, with the norm after them; or the task's "head" alone.
        rank: r of LoRA and DoRA.
        alpha: what they add is multiplied by alpha / rank.
        targets: maps of every layer that get an adapter, as they are called in model-info.txt.
        layers: how many layers "last" trains, of every stack.
        base_dtype: in which frozen matrices are kept; others stay in float32.
        layer_decay: the learning rate of a layer is this times that of the layer after it, and
            that of the embedding is one more power lower; 1 is the same rate everywhere.
    """

    method: Literal["all", "lora", "dora", "ia3", "last", "head"] = "all"
    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = ("query", "key", "value", "out")
    layers: int = 1
    base_dtype: Literal["float32", "bfloat16"] = "float32"
    layer_decay: float = 1.0

    def __post_init__(self) -> None:
        for field in ("rank", "layers", "alpha"):
            if getattr(self, field) <= 0:
                raise ProtlmError(f"tune.{field} is {getattr(self, field)}; it must be above 0")
        if not 0 < self.layer_decay <= 1:
            raise ProtlmError(f"tune.layer_decay is {self.layer_decay}; it must be in (0, 1]")

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


@dataclasses.dataclass(frozen=True, eq=False)
class Tuning:
    """Divides a model's parameters into a frozen base and what is trained, and joins them.

    Attributes:
        config: see TuneConfig.
        model: whose parameters these are.
        head: a task head, whose parameters stand beside the model's as `TASK_HEAD`; None without.
    """

    config: TuneConfig
    model: nn.Module
    head: nn.Module | None = None

    @classmethod
    def of(cls, config: TuneConfig, model: nn.Module, head: nn.Module | None) -> Tuning | None:
        """None where all parameters are trained, and no head beside them."""
        return None if config.method == "all" and head is None else cls(config, model, head)

    def init_boxed(self, rng: jax.Array) -> Params:
        """Fresh parameters of the model and the head, with their axis names (traceable)."""
        params = dict(init_boxed(self.model, rng))
        if self.head is not None:
            h = jnp.zeros((1, 1, self.model.config.d_model))
            key = jax.random.fold_in(rng, 1)
            params[TASK_HEAD] = self.head.init(key, h, jnp.ones((1, 1), jnp.int32))["params"]
        return params

    def init(self, rng: jax.Array) -> Params:
        """Fresh parameters of the model and the head (traceable)."""
        return nn.meta.unbox(self.init_boxed(rng))

    @property
    def whole_axes(self) -> Params:
        """Logical axes of the model's and the head's parameters."""
        boxed = jax.eval_shape(self.init_boxed, jax.random.key(0))
        return jax.tree.map(lambda x: x.names, boxed, is_leaf=lambda x: isinstance(x, NamedAxes))

    @property
    def axes(self) -> tuple[Params, Params]:
        """Logical axes of the base and of what is trained."""
        flat = flatten_dict(self.whole_axes)
        if self.config.method in ADAPTERS:
            trained = {p: n for p, n in flat.items() if p[0] == TASK_HEAD}
            base = {p: n for p, n in flat.items() if p[0] != TASK_HEAD}
            for path, names in self._targets(flat):
                inputs = _inputs(names)
                out = (names[0], *names[inputs:])
                new: dict[str, Names] = {
                    "lora_a": (*names[:inputs], "rank"),
                    "lora_b": (names[0], "rank", *names[inputs:]),
                    "magnitude": out,
                    "ia3_in": names[:inputs],
                    "ia3_out": out,
                }
                trained |= {(*path[:-1], leaf): new[leaf] for leaf in self._leaves(path[-2])}
            return unflatten_dict(base), unflatten_dict(trained)
        frozen, trained = {}, {}
        for path, names in flat.items():
            stacked = self.config.method == "last" and _is_stacked(path, names)
            after = self.config.method == "last" and bool({*path} & {*_AFTER})
            if self.config.method == "all" or stacked or after or path[0] == TASK_HEAD:
                trained[path] = names
            if path not in trained or stacked:
                frozen[path] = names
        return unflatten_dict(frozen), unflatten_dict(trained)

    def _leaves(self, name: str) -> tuple[str, ...]:
        """Names of the arrays of an adapter of a map."""
        if self.config.method == "ia3":
            return ("ia3_in",) if name in _INPUTS else ("ia3_out",)
        return ("lora_a", "lora_b", "magnitude")[: 3 if self.config.method == "dora" else 2]

    def _targets(self, flat: Mapping[Path, Names]) -> Iterator[tuple[Path, Names]]:
        """Paths and axes of the kernels that get an adapter."""
        kernels = {p: n for p, n in flat.items() if p[-1] == "kernel" and _is_stacked(p, n)}
        there = sorted({path[-2] for path in kernels})
        if wrong := [name for name in self.config.targets if name not in there]:
            raise ProtlmError(
                f"tune.targets names {wrong[0]!r}, and a {self.model.config.family} has no such "
                f"map in its layers: choose of {', '.join(there)}"
            )
        return ((p, n) for p, n in kernels.items() if p[-2] in self.config.targets)

    def split(self, params: Params, rng: jax.Array) -> tuple[Params, Params]:
        """Base and trained parameters of the whole; new adapters change nothing yet (traceable)."""
        flat, names = flatten_dict(params), flatten_dict(self.whole_axes)
        base_axes, axes = (flatten_dict(tree) for tree in self.axes)
        base, trained, layers = {}, {}, self.config.layers
        for path, leaf in flat.items():
            cut = leaf.shape[0] - layers if path in base_axes and path in axes else 0
            if cut < 0 or (cut == 0 and path in base_axes and path in axes):
                raise ProtlmError(
                    f"tune.layers is {layers}, and {'/'.join(path)} has {leaf.shape[0]} layers: "
                    f"choose fewer, or tune.method=all"
                )
            if path in axes:
                trained[path] = leaf[cut:]
            if path in base_axes:
                base[path] = self._kept(path, names[path], leaf[:cut] if cut else leaf)
        for index, path in enumerate(sorted(axes.keys() - flat.keys())):
            kernel = flat[(*path[:-1], "kernel")]
            inputs = _inputs(names[(*path[:-1], "kernel")])
            key = jax.random.fold_in(rng, 2 + index)
            trained[path] = _fresh(path, kernel, inputs, self.config.rank, key)
        return unflatten_dict(base), unflatten_dict(trained)

    def _kept(self, path: Path, names: Names, leaf: jax.Array) -> jax.Array:
        """A frozen array in the dtype of the base: matrices may be rounded, vectors never."""
        matrix = path[-1] not in ("bias", "scale") and len(set(names) - {"layers"}) > 1
        return leaf.astype(self.config.base_dtype) if matrix else leaf

    def join(self, base: Params, trained: Params) -> Params:
        """The whole as the forward pass reads it, adapters beside their kernels (traceable)."""
        flat = flatten_dict(base)
        for path, leaf in flatten_dict(trained).items():
            if path in flat:  # the last layers of a stack
                leaf = jnp.concatenate([flat[path].astype(leaf.dtype), leaf])
            flat[path] = leaf * self.config.scale if path[-1] == "lora_b" else leaf
        return unflatten_dict(flat)

    def merge(self, base: Params, trained: Params) -> Params:
        """Parameters of a plain model that computes the same; the head stays beside them."""
        joined = self.join(base, trained)
        return jax.tree.map(lambda x: x.astype(jnp.float32), merged(joined, stacked=True))


def _fresh(path: Path, kernel: jax.Array, inputs: int, rank: int, key: jax.Array) -> jax.Array:
    """An adapter's array that changes nothing, as PEFT begins: A uniform (Kaiming), B zero."""
    ins, outs = kernel.shape[1:inputs], kernel.shape[inputs:]
    if path[-1] == "lora_a":
        bound = math.prod(ins) ** -0.5
        return jax.random.uniform(key, (*kernel.shape[:inputs], rank), minval=-bound, maxval=bound)
    if path[-1] == "lora_b":
        return jnp.zeros((kernel.shape[0], rank, *outs))
    if path[-1] == "magnitude":
        return jax.vmap(lambda k: column_norms(k, inputs - 1))(kernel)
    return jnp.ones((kernel.shape[0], *(ins if path[-1] == "ia3_in" else outs)))


def _inputs(names: Names) -> int:
    """How many axes of a stacked kernel, the layers among them, come before what it puts out."""
    return 3 if names[1:3] == ("heads", "kv") else 2


def _is_stacked(path: Path, names: Names) -> bool:
    return names[:1] == ("layers",) and path[0] != CONTACT_HEAD
