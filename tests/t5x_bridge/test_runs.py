"""T5X's own programs on the gin recipes: train, evaluate, checkpoint, go on, score and predict."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

pytest.importorskip("t5x", reason="T5X is not installed: requirements/t5x.txt")

from protlm_jax import models
from protlm_jax.evaluation.scoring.score import likelihoods
from protlm_jax.models.loaded import LoadedModel
from protlm_jax.t5x_bridge.reading import read_model
from protlm_jax.vocabularies import get_vocabulary

ROOT = Path(__file__).parents[2]
SHORT = {
    "CHECKPOINT_PERIOD": 2,
    "EVAL_PERIOD": 2,
    "EVAL_STEPS": 1,
    "STATS_PERIOD": 1,
    "BATCH_SIZE": 4,
    "optimizers.learning_rate.warmup_steps": 1,
    "optimizers.learning_rate.total_steps": 100,
}
LENGTHS = {"prot_t5_tiny": {"inputs": 64, "targets": 64}, "prot_bert_tiny": {"targets": 64}}
TASKS = {"prot_t5_tiny": "bundled_prott5", "prot_bert_tiny": "bundled_tokens"}


def run(program: str, *arguments: str, devices: int = 1, **bindings: Any) -> None:
    """One of T5X's programs, on simulated devices."""
    flags = [f"--gin.{name}={value!r}" for name, value in bindings.items()]
    # The flags of conftest's own process are for eight devices.
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    done = subprocess.run(
        [sys.executable, "-m", program, *arguments, *flags],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]


def train(recipe: str, folder: Path, steps: int, devices: int = 1, partitions: int = 1) -> None:
    run(
        "t5x.train",
        f"--gin_file=gin/{recipe}.gin",
        devices=devices,
        MODEL_DIR=str(folder),
        TRAIN_STEPS=steps,
        TASK_FEATURE_LENGTHS=LENGTHS[recipe],
        **SHORT,
        **{"partitioning.Partitioner.num_partitions": partitions},
    )


def infer(recipe: str, checkpoint: Path, mode: str, folder: Path) -> list[dict[str, Any]]:
    """What T5X wrote about each of the first held-out proteins."""
    task = TASKS[recipe]
    run(
        "t5x.infer",
        f"--gin_file=gin/models/{recipe}.gin",
        f"--gin_file=gin/tasks/{task}.gin",
        "--gin_file=gin/runs/infer.gin",
        CHECKPOINT_PATH=str(checkpoint),
        INFER_OUTPUT_DIR=str(folder),
        MODE=mode,
        TASK_FEATURE_LENGTHS=dict.fromkeys(LENGTHS[recipe], 24),
        **{"infer.num_shards": 40},
    )
    (file,) = folder.glob(f"{task}-{mode}.jsonl-00000-of-*[0-9]")
    return [json.loads(line) for line in file.read_text().splitlines()]


def logged(folder: Path, part: str) -> dict[int, dict[str, float]]:
    """The scalars that T5X wrote for TensorBoard, by step; a step written twice counts last."""
    from protlm_jax.data.runtime import tf

    found: dict[int, dict[str, float]] = {}
    for file in sorted((folder / part).glob("events.*")):
        for event in tf.compat.v1.train.summary_iterator(str(file)):
            for value in event.summary.value:
                if value.tensor.dtype == tf.float32.as_datatype_enum:
                    scalar = float(tf.make_ndarray(value.tensor))
                    found.setdefault(event.step, {})[value.tag] = scalar
    return found


def losses(folder: Path) -> dict[int, float]:
    return {step: of["loss"] for step, of in logged(folder, "train").items() if "loss" in of}


def native_scores(checkpoint: Path, lines: list[dict[str, Any]]) -> list[float]:
    """What our own evaluation says of the same rows, from T5X's checkpoint."""
    config, params = read_model(checkpoint)
    model, vocabulary = models.build(config), get_vocabulary(config.vocabulary)
    rows = [line["inputs"] for line in lines]
    if not config.num_decoder_layers:
        proteins = [vocabulary.decode(np.trim_zeros(row["targets"])[1:-1]) for row in rows]
        loaded = LoadedModel(model, params, vocabulary, "t5x")
        return [answer.total for answer in likelihoods(loaded, proteins)]
    inputs, targets = (np.array([row[name] for row in rows]) for name in ("inputs", "targets"))
    batch = {
        "encoder_input_tokens": inputs,
        "encoder_segment_ids": (inputs > 0).astype(np.int32),
        "decoder_input_tokens": np.pad(targets[:, :-1], ((0, 0), (1, 0))),
        "decoder_segment_ids": (targets > 0).astype(np.int32),
    }
    logs = jax.nn.log_softmax(jax.jit(model.apply)({"params": params}, batch))
    own = np.take_along_axis(np.asarray(logs), targets[..., None], axis=-1)[..., 0]
    return list(np.sum(own * (targets > 0), axis=1))


@pytest.mark.parametrize(
    "recipe",
    [
        pytest.param("prot_t5_tiny", marks=pytest.mark.slow),
        pytest.param("prot_bert_tiny", marks=pytest.mark.long),
    ],
)
def test_a_recipe_trains_goes_on_exactly_and_is_asked(recipe: str, tmp_path: Path) -> None:
    straight, stopped, split = (tmp_path / name for name in ("straight", "stopped", "split"))
    train(recipe, straight, 4)
    whole = losses(straight)
    assert sorted(whole) == [1, 2, 3, 4]
    heldout = logged(straight, f"training_eval/{TASKS[recipe]}")
    assert {2, 4} <= set(heldout) and "hidden/nll" in heldout[4]

    train(recipe, stopped, 2)
    train(recipe, stopped, 4)
    assert losses(stopped) == whole

    train(recipe, split, 4, devices=4, partitions=2)
    theirs = losses(split)
    np.testing.assert_allclose([theirs[i] for i in whole], list(whole.values()), rtol=1e-5)

    checkpoint = straight / "checkpoint_4"
    scores = infer(recipe, checkpoint, "score", tmp_path / "score")
    assert len(scores) > 5
    expected = native_scores(checkpoint, scores)
    np.testing.assert_allclose([line["score"] for line in scores], expected, rtol=1e-4)
    answers = infer(recipe, checkpoint, "predict", tmp_path / "predict")
    assert len(answers) == len(scores) and all(line["prediction"] for line in answers)
