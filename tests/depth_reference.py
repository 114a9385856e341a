"""The measurements by hand, slowly: the same weights in transformers, hooks, and NumPy in float64.

A pass is one run of the PyTorch model with hooks that watch the stream before every block and what
each sublayer adds, and may change both. Only `run` uses what is tested.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import depth_rows
import jax
import numpy as np
import pytest
from depth_rows import measure_batch

from protlm_jax import models
from protlm_jax.evaluation.depth.batches import DepthBatch
from protlm_jax.evaluation.depth.positions import PositionSet
from protlm_jax.huggingface.convert import EXCHANGES, tensors
from protlm_jax.models.families.bert import bert_config
from protlm_jax.models.families.esm2 import esm2_config
from protlm_jax.models.families.esmc import esmc_config
from protlm_jax.models.families.gpt2 import gpt2_config
from protlm_jax.models.families.t5 import t5_config
from protlm_jax.models.loaded import LoadedModel
from protlm_jax.vocabularies import get_vocabulary

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SIZES = {"d_model": 16, "num_layers": 3, "num_heads": 2, "head_dim": 8, "d_ff": 32}
CONFIGS = {
    "bert": bert_config(**SIZES, max_positions=16, initializer_range=0.3),
    "esm2": esm2_config(**SIZES, initializer_range=0.3),
    "esmc": esmc_config(**SIZES, initializer_range=0.3),
    "gpt2": gpt2_config(**SIZES, max_positions=16, initializer_range=0.3, dropout_rate=0.0),
    "t5": t5_config(**SIZES, num_decoder_layers=4, dropout_rate=0.0, mlp_dropout=False),
}
SINGLE = ("bert", "esm2", "esmc", "gpt2")  # families with one stack
STACKS = [*((family, "encoder") for family in SINGLE), ("t5", "encoder"), ("t5", "decoder")]
SLOW = (("gpt2", "encoder"), ("t5", "decoder"))
LONG = (("esmc", "encoder"),)  # what differs least


def cases(*left_out: tuple[str, str]) -> list[Any]:
    """(family, stack) as a test's parameters, some of them left to the slow stage."""
    return [
        pytest.param(
            *one, marks=[pytest.mark.slow] * (one in SLOW) + [pytest.mark.long] * (one in LONG)
        )
        for one in STACKS
        if one not in left_out
    ]


# Where the blocks lie in transformers' models.
BLOCKS = {
    "bert": "bert.encoder.layer",
    "esm2": "esm.encoder.layer",
    "esmc": "esmc.layers",
    "gpt2": "transformer.h",
}
# Of each sublayer the module whose output is added, and one that is given the stream.
_BERT = {
    "attention": ("attention.output.dense", "attention.output"),
    "mlp": ("output.dense", "output"),
}
_T5 = {"attention": ("layer.0.SelfAttention.o", "layer.0")}
PARTS: dict[str, dict[str, tuple[str, str]]] = {
    "bert": _BERT,
    "esm2": _BERT,
    "esmc": {
        "attention": ("self_attn.o_proj", "input_layernorm"),
        "mlp": ("mlp.down_proj", "post_attention_layernorm"),
    },
    "gpt2": {"attention": ("attn.c_proj", "ln_1"), "mlp": ("mlp.c_proj", "ln_2")},
    "t5 encoder": {**_T5, "mlp": ("layer.1.DenseReluDense.wo", "layer.1")},
    "t5 decoder": {
        **_T5,
        "cross_attention": ("layer.1.EncDecAttention.o", "layer.1"),
        "mlp": ("layer.2.DenseReluDense.wo", "layer.2"),
    },
}
LENGTHS = np.array([10, 6, 8])
REAL = np.arange(10)[None] < LENGTHS[:, None]
HIDDEN = REAL & (np.random.default_rng(1).random(REAL.shape) < 0.4)
CONTEXT = REAL & ~HIDDEN
Edit = tuple[str, int, Callable[[Any, Any], Any]]  # part, layer, (output, stream before) -> output


class Pass:
    """What one run of the PyTorch model showed, of one stack.

    Attributes:
        streams: [N + 1, B, L, D] float64; entry i is the stream before block i.
        added, onto: by sublayer, [N, B, L, D]: what it added, and to what.
        answer: [B, L, 20] log-probabilities of the amino acids.
    """

    def __init__(self) -> None:
        self.streams: list[np.ndarray] = []
        self.added: dict[str, list[np.ndarray]] = {}
        self.onto: dict[str, list[np.ndarray]] = {}
        self.answer = np.empty(0)

    @property
    def contribution(self) -> np.ndarray:
        """c_l, [N, B, L, D]."""
        return np.diff(np.array(self.streams), axis=0)


class Reference:
    """One stack of a tiny model, in our library (`loaded`) and in transformers."""

    def __init__(self, family: str, stack: str) -> None:
        self.family, self.stack, self.config = family, stack, CONFIGS[family]
        model = models.build(self.config)
        rng = np.random.default_rng(0)
        params = jax.tree.map(
            lambda p: p + 0.1 * rng.standard_normal(p.shape).astype(np.float32),
            models.init_params(model, seed=0),
        )
        vocabulary = get_vocabulary(self.config.vocabulary)
        self.loaded = LoadedModel(model, params, vocabulary, family)
        self.amino_acids = np.asarray(vocabulary.amino_acid_ids)
        self.true = np.where(REAL, rng.choice(self.amino_acids, REAL.shape), vocabulary.pad_id)
        self.true = self.true.astype(np.int32)
        self.target, self.residues, self.asked = HIDDEN, REAL, self.true
        if family == "gpt2":  # sees all before, and answers one position early
            shown = self.true
            self.target, self.residues, self.asked = map(_earlier, (HIDDEN, REAL, self.true))
        else:
            shown = np.where(HIDDEN, vocabulary.hiding_id, self.true).astype(np.int32)
        sides = {
            "segment_ids": REAL.astype(np.int32),
            "positions": np.tile(np.arange(10, dtype=np.int32), (3, 1)),
        }
        self.features = {"input_tokens": shown, **sides}
        self.shifted = np.pad(self.true[:, :-1], ((0, 0), (1, 0)))
        if family == "t5":
            self.features = {f"{s}_{k}": v for s in model.stack_names for k, v in sides.items()}
            self.features |= {"encoder_input_tokens": shown, "decoder_input_tokens": self.shifted}
        self.number = self.config.num_decoder_layers if stack == "decoder" else 3
        self.shown = shown
        protein = np.where(REAL, np.arange(3)[:, None], -1).astype(np.int32)
        self.batch = DepthBatch(self.features, self.true, HIDDEN, REAL, protein, [0, 1, 2])

    @functools.cached_property
    def network(self) -> Any:
        return self.reordered(tuple(range(self.number)))

    @functools.cache  # noqa: B019
    def reordered(self, order: tuple[int, ...]) -> Any:
        """The model whose stack runs these layers in this order; T5's bias stays the first's."""
        field = "num_decoder_layers" if self.stack == "decoder" else "num_layers"
        exchange = EXCHANGES[self.family]
        config = transformers.AutoConfig.for_model(
            exchange.model_type, **exchange.to_config(self.config.replace(**{field: len(order)}))
        )
        network = getattr(transformers, exchange.architecture)(config).eval().double()
        state = {
            name: torch.tensor(x).double() for name, x in tensors(exchange, self.loaded.params)
        }
        prefix = BLOCKS.get(self.family, f"{self.stack}.block") + "."
        state = {k: v for k, v in state.items() if "contact_head" not in k}  # as wide as deep
        moved = {k: v for k, v in state.items() if not k.startswith(prefix)}
        for name, tensor in state.items():
            if name.startswith(prefix):
                layer, rest = name.removeprefix(prefix).split(".", 1)
                places = [i for i, source in enumerate(order) if source == int(layer)]
                if "relative_attention_bias" in rest:
                    places = [0]
                moved |= {f"{prefix}{place}.{rest}": tensor for place in places}
        assert not network.load_state_dict(moved, strict=False).unexpected_keys
        network.tie_weights()
        for block in self.blocks(network):
            if self.family == "esmc":  # it is made from the number of layers
                block.scaling_factor = self.config.residual_divisor
        return network

    def blocks(self, network: Any) -> Any:
        return network.get_submodule(BLOCKS.get(self.family, f"{self.stack}.block"))

    def parts(self, block: Any) -> dict[str, tuple[Any, Any]]:
        """Of each sublayer the module whose output is added, and one that is given the stream."""
        paths = PARTS.get(self.family) or PARTS[f"t5 {self.stack}"]
        return {n: tuple(map(block.get_submodule, each)) for n, each in paths.items()}

    def run(self, edits: list[Edit] | None = None, order: tuple[int, ...] | None = None) -> Pass:
        """One pass, with some outputs changed: of a "layer", of a sublayer, or the "stream" itself.

        A "stream" edit changes what comes in before a layer, and ("end", N) the last stream.
        """
        network = self.network if order is None else self.reordered(order)
        seen = Pass()
        with torch.no_grad(), contextlib.ExitStack() as hooks:
            for handle in self._hooks(network, seen, edits or []):
                hooks.callback(handle.remove)
            seen.answer = self._answer(network)
        return seen

    def _hooks(self, network: Any, seen: Pass, edits: list[Edit]) -> Iterator[Any]:
        blocks = self.blocks(network)
        for index, block in enumerate(blocks):
            mine = {part: change for part, layer, change in edits if layer == index}
            if index == len(blocks) - 1:
                mine |= {part: c for part, layer, c in edits if (part, layer) == ("end", index + 1)}
            yield block.register_forward_pre_hook(functools.partial(_enter, seen, mine))
            scale = self.config.residual_divisor
            for name, (end, adder) in self.parts(block).items():
                onto = 1 if self.family in ("bert", "esm2") else 0
                yield adder.register_forward_pre_hook(functools.partial(_adds, seen, name, onto))
                yield end.register_forward_hook(functools.partial(_added, seen, name, mine, scale))
            last = index == len(blocks) - 1
            yield block.register_forward_hook(functools.partial(_leave, seen, mine, last))

    def _answer(self, network: Any) -> np.ndarray:
        mask = torch.tensor(REAL.astype(np.int64))
        inputs = {"input_ids": torch.tensor(self.shown).long(), "attention_mask": mask}
        if self.family == "t5":
            inputs |= {"decoder_input_ids": torch.tensor(self.shifted).long()}
            inputs |= {"decoder_attention_mask": mask}
        return self.over_residues(network(**inputs).logits)

    def over_residues(self, logits: Any) -> np.ndarray:
        chosen = logits[..., self.amino_acids.tolist()]
        return torch.log_softmax(chosen, dim=-1).detach().numpy()

    def head(self, stream: Any) -> np.ndarray:
        """The answer from a stream of the stack that is read, [B, L, 20]."""
        n, h = self.network, torch.as_tensor(stream)
        if self.family == "bert":
            return self.over_residues(n.cls(h))
        norms = {"esm2": "esm.encoder.emb_layer_norm_after", "esmc": "esmc.norm",
                 "gpt2": "transformer.ln_f", "t5": "decoder.final_layer_norm"}  # fmt: skip
        h = n.get_submodule(norms[self.family])(h)
        if self.family == "t5" and n.config.scale_decoder_outputs:
            h = h * n.model_dim**-0.5
        return self.over_residues(n.lm_head(h))

    def differ(self, base: np.ndarray, other: np.ndarray, where: np.ndarray) -> dict[str, Any]:
        """How one answer differs from another: sums over positions of each row."""
        p, q = np.exp(base), np.exp(other)
        true = self.asked[..., None] == self.amino_acids[None, None]
        best = other.argmax(-1)
        values = {
            "l2": ((q - p) ** 2).sum(-1) ** 0.5,
            "kl": (q * (other - base)).sum(-1),
            "kl_reverse": (p * (base - other)).sum(-1),
            "top1_agreement": best == base.argmax(-1),
            "nll": -(other * true).sum(-1),
            "accuracy": np.take_along_axis(true, best[..., None], -1)[..., 0],
        }
        return {name: (x * where).sum(-1) for name, x in values.items()}


def _earlier(x: np.ndarray) -> np.ndarray:
    return np.pad(x[:, 1:], ((0, 0), (0, 1)))


def _first(x: Any) -> Any:
    return x[0] if isinstance(x, tuple) else x


def _enter(seen: Pass, edits: dict[str, Any], block: Any, args: Any) -> Any:
    h = args[0]
    if "stream" in edits:
        h = edits["stream"](h, h)
    seen.streams.append(h.numpy().copy())
    block.entered = h
    return (h, *args[1:])


def _adds(seen: Pass, name: str, index: int, module: Any, args: Any) -> None:
    seen.onto.setdefault(name, []).append(args[index].numpy().copy())


def _added(
    seen: Pass, name: str, edits: Any, scale: float, module: Any, args: Any, out: Any
) -> Any:
    if name in edits:
        out = edits[name](out, out)
    seen.added.setdefault(name, []).append(out.numpy() / scale)
    return out


def _leave(seen: Pass, edits: dict[str, Any], last: bool, block: Any, args: Any, out: Any) -> Any:
    h = _first(out)
    if "layer" in edits:
        h = edits["layer"](h, block.entered)
    if "end" in edits:
        h = edits["end"](h, h)
    if last:
        seen.streams.append(h.numpy().copy())
    return (h, *out[1:]) if isinstance(out, tuple) else h


def skipped(source: np.ndarray) -> Callable[[Any, Any], Any]:
    """A layer's output becomes its input at these positions."""
    where = torch.tensor(source)[..., None]
    return lambda out, before: torch.where(where, before, out)


def silenced(source: np.ndarray) -> Callable[[Any, Any], Any]:
    """A sublayer adds nothing at these positions."""
    where = torch.tensor(source)[..., None]
    return lambda out, _: torch.where(where, torch.zeros_like(out), out)


def instead(stream: np.ndarray) -> Callable[[Any, Any], Any]:
    """Another stream."""
    return lambda out, _: torch.as_tensor(stream)


@functools.cache
def reference(family: str, stack: str) -> Reference:
    return Reference(family, stack)


def measured(
    family: str,
    stack: str,
    metrics: tuple[str, ...],
    positions: PositionSet = "asked",
    loaded: LoadedModel | None = None,
) -> Any:
    """Our measurements of the same batch: name -> Stat, and the sample of streams."""
    ref = reference(family, stack)
    return measure_batch(loaded or ref.loaded, ref.batch, stack, metrics, positions)


def run(ref: Reference, function: Any, *arrays: Any, **fixed: Any) -> Any:
    """A function of a subject on the same batch."""
    return depth_rows.run(ref.loaded, ref.batch, ref.stack, function, *arrays, **fixed)


def length(x: np.ndarray) -> np.ndarray:
    return (np.asarray(x, np.float64) ** 2).sum(-1) ** 0.5
