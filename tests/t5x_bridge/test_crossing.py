"""Checkpoints that T5X itself wrote, as transformers reads them; and ours, as T5X reads them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

pytest.importorskip("t5x", reason="T5X is not installed: requirements/t5x.txt")

import zoo
from flax.core import freeze, unfreeze
from flax.traverse_util import flatten_dict, unflatten_dict
from t5x import adafactor, checkpoints, utils
from t5x.examples.scalable_t5 import network as scalable_t5
from t5x.examples.t5 import network as t5
from t5x.models import EncoderDecoderModel

from protlm_jax.data.seqio_features import SeqioVocabulary
from protlm_jax.errors import ProtlmError
from protlm_jax.huggingface import export, load_model
from protlm_jax.huggingface.load import load_source
from protlm_jax.t5x_bridge import models as bridge
from protlm_jax.t5x_bridge.checkpoints import write_checkpoint
from protlm_jax.t5x_bridge.initial import FromCheckpoint, FromModel
from protlm_jax.t5x_bridge.partitioning import Partitioner, axis_rules
from protlm_jax.vocabularies import PROT_T5

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SIZES = {
    "vocab_size": 128, "emb_dim": 16, "num_heads": 2, "head_dim": 8, "mlp_dim": 24,
    "num_encoder_layers": 2, "num_decoder_layers": 2,
}  # fmt: skip
GATED = {"mlp_activations": ("gelu", "linear"), "logits_via_embedding": False}
RELU = {"mlp_activations": ("relu",), "logits_via_embedding": True}
SHAPES = {
    f"{side}_{kind}": (8, 12)
    for side, kind in (
        ("encoder", "input_tokens"), ("decoder", "input_tokens"), ("decoder", "target_tokens")
    )
}  # fmt: skip

FEATURES = {
    f"{side}_{kind}": (8, 12)
    for side in ("encoder", "decoder")
    for kind in ("input_tokens", "segment_ids", "positions")
}


@pytest.fixture(autouse=True)
def as_t5x_writes_it() -> Iterator[None]:
    """T5X relies on arrays of lower rank being spread."""
    with jax.numpy_rank_promotion("allow"):
        yield


def states(
    model: Any,
    shapes: dict[str, Any] = SHAPES,
    kind: Any = utils.TrainStateInitializer,
    **more: str,
) -> utils.TrainStateInitializer:
    return kind(
        optimizer_def=model.optimizer_def,
        init_fn=model.get_initial_variables,
        input_shapes=shapes,
        input_types=dict.fromkeys(shapes, np.int32),
        partitioner=partitioner(),
        **more,
    )


def optimizer() -> adafactor.Adafactor:
    rules = adafactor.standard_logical_factor_rules()
    return adafactor.Adafactor(logical_factor_rules=rules)


def partitioner() -> Partitioner:
    return Partitioner(num_partitions=1, logical_axis_rules=axis_rules())


def save_orbax(state: Any, folder: Path) -> None:
    manager = checkpoints.OrbaxCheckpointManagerInterface(str(folder), state, partitioner())
    manager.save(state)
    manager.close()


def save_legacy(state: Any, folder: Path) -> None:
    checkpoints.Checkpointer(state, partitioner(), str(folder)).save(state)


def alike(params: Any) -> Any:
    """Of tables of relative positions by layer, the first one for all."""
    flat = flatten_dict(unfreeze(params))
    for path, leaf in flat.items():
        if "relpos_bias" in path and leaf.ndim == 3:
            flat[path] = np.repeat(np.asarray(leaf)[:, :1], leaf.shape[1], axis=1)
    return freeze(unflatten_dict(flat))


@pytest.mark.parametrize(
    ("network", "fields", "save"),
    [
        (t5, GATED, save_orbax),
        (t5, RELU, save_legacy),
        (scalable_t5, GATED, save_orbax),
        (scalable_t5, RELU, save_legacy),
    ],
)
def test_t5x_and_transformers_say_the_same(
    network: Any, fields: dict[str, Any], save: Callable[[Any, Path], None], tmp_path: Path
) -> None:
    module = network.Transformer(network.T5Config(**SIZES, **fields))
    vocabulary = SeqioVocabulary(PROT_T5)
    model = EncoderDecoderModel(module, vocabulary, vocabulary, optimizer())
    state = states(model).from_scratch(jax.random.PRNGKey(3))
    state = state.replace_params(alike(state.params))
    save(state, tmp_path)

    tokens, shifted = batch_of_two_lengths()
    expected = module.apply({"params": state.params}, tokens, shifted, tokens, enable_dropout=False)

    assert_transformers_agrees(tmp_path, tokens, shifted, expected)


def test_our_model_under_t5x_and_transformers_say_the_same(tmp_path: Path) -> None:
    config = zoo.ZOO["t5"].config
    model = bridge.EncoderDecoderModel(config, "denoising", optimizer())
    state = states(model, FEATURES).from_scratch(jax.random.PRNGKey(3))
    save_orbax(state, tmp_path)
    sizes = {name: value for name, value in config.to_dict().items() if type(value) is int}
    bound = [f"models.architecture.{name} = {value}" for name, value in sizes.items()]
    gin = ["models.architecture.name = 'prot_t5_xl'", *bound]
    (tmp_path / "config.gin").write_text("\n".join(gin))
    tokens, shifted = batch_of_two_lengths()
    features = {
        "encoder_input_tokens": tokens,
        "decoder_input_tokens": shifted,
        **{f"{side}_segment_ids": np.int32(tokens > 0) for side in ("encoder", "decoder")},
        **{f"{side}_positions": np.indices((8, 12))[1] for side in ("encoder", "decoder")},
    }
    expected = model._compute_logits(state.params, features)
    assert_transformers_agrees(tmp_path, tokens, shifted, expected)


def batch_of_two_lengths() -> tuple[np.ndarray, np.ndarray]:
    """Tokens [8, 12], half of the rows with padding, and what the decoder is shown."""
    tokens = np.random.default_rng(0).integers(3, 28, (8, 12))
    tokens[:, 9:] = np.where(np.arange(8)[:, None] % 2, 0, tokens[:, 9:])
    return tokens, np.pad(tokens[:, :-1], ((0, 0), (1, 0)))


def assert_transformers_agrees(
    model_dir: Path, tokens: np.ndarray, shifted: np.ndarray, expected: Any
) -> None:
    folder = export(load_model(model_dir), model_dir / "hf")
    theirs = transformers.T5ForConditionalGeneration.from_pretrained(folder).eval()
    shown, seen = torch.tensor(tokens), torch.tensor((tokens > 0).astype(np.int64))
    with torch.no_grad():
        logits = theirs(shown, seen, decoder_input_ids=torch.tensor(shifted)).logits.numpy()
    difference = np.abs(logits - expected)[tokens > 0].max()
    assert difference <= 1e-4 * np.abs(expected).max()


def test_t5x_starts_from_what_is_exported_for_it(tmp_path: Path) -> None:
    loaded = zoo.loaded("t5")
    source = load_source(export(loaded, tmp_path / "hf"))
    # As of a run of ours: the folder's name is the step.
    source = dataclasses.replace(source, checkpoint=Path("run/checkpoints/40"))
    checkpoint = write_checkpoint(source, tmp_path / "t5x")
    model = bridge.EncoderDecoderModel(loaded.config, "denoising", optimizer())
    config = utils.RestoreCheckpointConfig(
        path=str(checkpoint),
        mode="specific",
        dtype="float32",
        assignment_map=(("state/param_states/.*", None),),
        fallback_to_scratch=True,
    )
    initializer = states(model, FEATURES)
    state, _ = utils.create_checkpoint_manager_and_restore(
        initializer,
        partitioner(),
        config,
        str(checkpoint),
        jax.random.PRNGKey(0),
        model_dir=str(tmp_path / "run"),
        use_orbax=True,
    )
    assert int(state.step) == 40
    jax.tree.map(np.testing.assert_array_equal, unfreeze(state.params), loaded.params)


def test_a_run_starts_from_another_model_or_from_all_of_a_checkpoint(tmp_path: Path) -> None:
    loaded = zoo.loaded("t5")
    hf = str(export(loaded, tmp_path / "hf"))
    model = bridge.EncoderDecoderModel(loaded.config, "denoising", optimizer())
    state = states(model, FEATURES, FromModel, source=hf).from_scratch(jax.random.PRNGKey(0))
    assert int(state.step) == 0
    jax.tree.map(np.testing.assert_array_equal, unfreeze(state.params), loaded.params)
    moved = state.replace_step(state.step + 30)
    save_orbax(moved, tmp_path)  # without the state of any data
    from_checkpoint = states(
        model, FEATURES, FromCheckpoint, checkpoint=str(tmp_path / "checkpoint_30")
    )
    again = from_checkpoint.from_scratch(jax.random.PRNGKey(1))
    jax.tree.map(np.testing.assert_array_equal, again.state_dict(), moved.state_dict())
    wider = bridge.EncoderDecoderModel(loaded.config.replace(d_ff=48), "denoising", optimizer())
    with pytest.raises(ProtlmError, match=r"mlp/wi/kernel is \[2, 16, 32\] there and \[2, 16, 48"):
        states(wider, FEATURES, FromModel, source=hf).from_scratch(jax.random.PRNGKey(0))
