"""One tiny model of every family, with what trains it; tests over all families go through it.

    from zoo import ZOO, loaded, row, training_batch

Adding a family to the tests is adding a specimen here.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
import pytest

from protlm_jax import models
from protlm_jax.data.batches import BatchRequest
from protlm_jax.data.config import DataConfig
from protlm_jax.data.streams import StreamIterator
from protlm_jax.data.token_files import TokenShard
from protlm_jax.models import LoadedModel, ModelConfig
from protlm_jax.models.families.albert import albert_config
from protlm_jax.models.families.bert import bert_config
from protlm_jax.models.families.dplm import dplm_config
from protlm_jax.models.families.electra import electra_config
from protlm_jax.models.families.esm2 import esm2_config
from protlm_jax.models.families.esmc import esmc_config
from protlm_jax.models.families.gpt2 import gpt2_config
from protlm_jax.models.families.progen2 import progen2_config
from protlm_jax.models.families.rita import rita_config
from protlm_jax.models.families.roberta import roberta_config
from protlm_jax.models.families.t5 import t5_config
from protlm_jax.models.families.transformer_xl import transformer_xl_config
from protlm_jax.models.families.xlnet import xlnet_config
from protlm_jax.objectives import Objective, build_objective
from protlm_jax.vocabularies import AMINO_ACIDS, Vocabulary, get_vocabulary

SIZES = {"d_model": 16, "num_layers": 2, "num_heads": 2, "head_dim": 8, "d_ff": 32}
ROW = 24
PROTEINS = (5, 9, 7)  # tokens of the proteins that `row` can pack
WATCHED = slice(5, 14)  # where the second one lies when all three are packed

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Specimen:
    """A family's smallest model and what goes with it.

    Attributes:
        config: two layers of width 16, no dropout.
        objective: name of what trains it.
        task: the data task of its batches.
        options: of the objective.
    """

    config: ModelConfig
    objective: str
    task: str
    options: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def vocabulary(self) -> Vocabulary:
        return get_vocabulary(self.config.vocabulary)

    def build_objective(self) -> Objective:
        return build_objective(self.objective, self.vocabulary, **self.options)


ZOO: dict[str, Specimen] = {
    "albert": Specimen(
        albert_config(**SIZES, embedding_size=12, max_positions=64, initializer_range=0.3),
        "masked",
        "tokens",
        {"ngram": 3},
    ),
    "bert": Specimen(
        bert_config(**SIZES, max_positions=64, initializer_range=0.3), "masked", "tokens"
    ),
    "dplm": Specimen(
        dplm_config(**SIZES, initializer_range=0.3), "diffusion", "tokens", {"steps": 20}
    ),
    "electra": Specimen(
        # The generator keeps a width of 8, the least of which a norm leaves something.
        electra_config(**SIZES, generator_shrink=2, max_positions=64, initializer_range=0.3),
        "replaced_token",
        "tokens",
    ),
    "esm2": Specimen(esm2_config(**SIZES, initializer_range=0.3), "masked", "tokens"),
    "esmc": Specimen(esmc_config(**SIZES, initializer_range=0.3), "masked", "tokens"),
    "gpt2": Specimen(
        gpt2_config(**SIZES, max_positions=64, dropout_rate=0.0, initializer_range=0.3),
        "causal",
        "tokens",
    ),
    "progen2": Specimen(
        # Its files hold heads in groups of eight.
        progen2_config(
            **{**SIZES, "d_model": 32, "num_heads": 8, "head_dim": 4},
            rotary_dim=2,
            max_positions=64,
            initializer_range=0.2,
        ),
        "causal",
        "tokens",
        {"reversed_rate": 0.5},
    ),
    "rita": Specimen(
        rita_config(**SIZES, max_positions=64, initializer_range=0.3),
        "causal",
        "tokens",
        {"reversed_rate": 0.5},
    ),
    "roberta": Specimen(
        roberta_config(**SIZES, max_positions=64, initializer_range=0.3), "masked", "tokens"
    ),
    "saprot": Specimen(
        esm2_config(**SIZES, vocabulary="saprot", vocab_size=446, initializer_range=0.3),
        "masked",
        "tokens",
    ),
    "t5": Specimen(
        t5_config(**SIZES, num_decoder_layers=2, dropout_rate=0.0, mlp_dropout=False),
        "denoising",
        "prott5",
    ),
    "transformer_xl": Specimen(
        transformer_xl_config(**SIZES, memory_length=12, dropout_rate=0.0, initializer_range=0.1),
        "causal",
        "stream",
    ),
    "xlnet": Specimen(
        xlnet_config(**SIZES, initializer_range=0.3, dropout_rate=0.0), "permutation", "tokens"
    ),
}


# One family of each kind: plain, of two models, encoder-decoder, recurrent.
KINDS = ("bert", "electra", "t5", "transformer_xl")


SLOW = ("esmc", "progen2", "xlnet")  # in CI's slow stage; the rest on demand: they are like others


def kinds_first(exact: Iterable[str] = ()) -> list[Any]:
    """Families as a test's parameters: `KINDS`, then `SLOW`, and the others marked long.

    For tests of minutes whose code is the same for every family of a kind. Those of `exact` are
    marked so too, and run with the compiler's default flags.
    """
    marks = {f: [pytest.mark.slow if f in SLOW else pytest.mark.long] for f in ZOO}
    marks |= {f: [pytest.mark.exact] * (f in exact) for f in KINDS}
    marks["electra"] = [pytest.mark.slow]
    return [pytest.param(f, marks=marks[f]) for f in (*KINDS, *(f for f in ZOO if f not in KINDS))]


def kinds_alone(among: Iterable[str] = ZOO) -> list[Any]:
    """Of some families those of `KINDS`; the others, which another test has, are marked long."""
    return [f if f in KINDS else pytest.param(f, marks=pytest.mark.long) for f in among]


def perturbed(params: Any, seed: int, size: float = 0.1) -> Any:
    """Parameters without a zero or a one among them: fresh biases and norms would hide mistakes."""
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(seed)
    noisy = [x + size * rng.standard_normal(x.shape).astype(np.float32) for x in leaves]
    return jax.tree.unflatten(tree, noisy)


@functools.cache
def loaded(family: str, seed: int = 0, noise: float = 0.1) -> LoadedModel:
    """The specimen's model with random parameters."""
    config = ZOO[family].config
    model = models.build(config)
    params = perturbed(models.init_params(model, seed), seed + 1, noise)
    return LoadedModel(model, params, get_vocabulary(config.vocabulary), f"tiny-{family}")


def protein(vocabulary: Vocabulary, index: int, seed: int = 0) -> np.ndarray:
    """Random residues: [PROTEINS[index]] int32."""
    rng = np.random.default_rng([seed, index])
    return rng.choice(vocabulary.amino_acid_ids, PROTEINS[index]).astype(np.int32)


def row(family: str, members: list[int], length: int = ROW) -> Batch:
    """One row, written out by hand: the members one after the other, then padding."""
    vocabulary = ZOO[family].vocabulary

    def filled(parts: list[np.ndarray]) -> np.ndarray:
        joined = np.concatenate(parts).astype(np.int32)
        return np.pad(joined, (0, length - len(joined)))[None]

    sides = {
        "segment_ids": filled([np.full(PROTEINS[m], i + 1) for i, m in enumerate(members)]),
        "positions": filled([np.arange(PROTEINS[m]) for m in members]),
    }
    if not ZOO[family].config.num_decoder_layers:
        return {"input_tokens": filled([protein(vocabulary, m) for m in members]), **sides}
    made = {f"{stack}_{k}": v for stack in ("encoder", "decoder") for k, v in sides.items()}
    for seed, stack in enumerate(("encoder", "decoder")):
        made[f"{stack}_input_tokens"] = filled([protein(vocabulary, m, seed) for m in members])
    return made


def stream(vocabulary: Vocabulary, rows: int, length: int) -> StreamIterator:
    """Streams of random proteins, many of them longer than a row."""
    rng = np.random.default_rng(7)
    sizes = rng.integers(4, 3 * length, 40)
    shard = TokenShard.of(["".join(rng.choice(list(AMINO_ACIDS), size)) for size in sizes])
    config = DataConfig(task="stream", length=length)
    return StreamIterator([shard], config, vocabulary, "zoo", BatchRequest("train", 0, rows))


def training_batch(family: str, seed: int, rows: int = 8, length: int = 16) -> Batch:
    """A batch of packed rows (two proteins and some padding) for the specimen's objective.

    Of a specimen that reads streams, batch `seed` of one stream: it continues the one before.
    """
    vocabulary = ZOO[family].vocabulary
    if ZOO[family].task == "stream":
        return next(itertools.islice(stream(vocabulary, rows, length), seed, None))
    rng = np.random.default_rng(seed)
    tokens = rng.choice(vocabulary.amino_acid_ids, (rows, length)).astype(np.int32)
    first, second = length // 2 + 1, length // 2 - 3
    rest = length - first - second
    segments = np.tile([1] * first + [2] * second + [0] * rest, (rows, 1)).astype(np.int32)
    positions = np.tile([*range(first), *range(second), *[0] * rest], (rows, 1)).astype(np.int32)
    sides = {"segment_ids": segments, "positions": positions}
    tokens = np.where(segments > 0, tokens, vocabulary.pad_id)
    if not ZOO[family].config.num_decoder_layers:
        return {"input_tokens": tokens, **sides}
    hidden = np.where(rng.random(tokens.shape) < 0.15, vocabulary.mask_id, tokens)
    return {
        **{f"{stack}_{k}": v for stack in ("encoder", "decoder") for k, v in sides.items()},
        "encoder_input_tokens": hidden.astype(np.int32),
        "decoder_input_tokens": np.roll(tokens, 1, axis=1),
        "decoder_target_tokens": tokens,
        "decoder_loss_weights": (segments > 0).astype(np.int32),
    }
