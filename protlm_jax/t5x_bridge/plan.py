"""What `protlm plan --gin_file` runs: the train step of a T5X recipe, compiled for a pod.

    python -m protlm_jax.t5x_bridge.plan --gin_file=gin/prot_t5_xxl_bfd.gin --topology=v3:16x32

A program of its own, since recipes name the `train` of `__main__`, to which gin hands all that they
put together. T5X's trains; the one here compiles the step that T5X's trainer would run, with T5X's
partitioner, for devices that are described and not there. Nothing is allocated, no data are read.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import t5x
import tensorflow as tf
from absl import logging as absl_logging
from flax.traverse_util import flatten_dict
from gin.config import configurable
from jax.sharding import NamedSharding, PartitionSpec
from t5x import gin_utils, utils

from protlm_jax.errors import ProtlmError
from protlm_jax.models import ModelConfig, parameter_count
from protlm_jax.models.flops import training_flops_per_token
from protlm_jax.planning.compile import Plan, measure
from protlm_jax.planning.table import table
from protlm_jax.planning.topologies import Topology, topology
from protlm_jax.storage.files import write_atomically
from protlm_jax.training.state import bytes_on_device

# Recipes leave it to the command line; nothing is written there.
NOWHERE = 'MODEL_DIR = "/nonexistent"'


def train(
    *,
    pod: Topology,
    model: Any,
    train_dataset_cfg: Any,
    partitioner: Any,
    trainer_cls: Any,
    total_steps: int,
    **_: Any,
) -> Plan:
    """Takes what T5X's `train` takes from gin, and answers with a plan.

    Args:
        pod: for which to compile.
        model: one of protlm_jax.t5x_bridge.models.
        train_dataset_cfg: how many rows, how long, and whether they are packed.
        partitioner: T5X's or ours.
        trainer_cls: with its learning rate and number of microbatches.
        total_steps: of the run.

    Raises:
        ProtlmError: the model is none of ours.
    """
    config = getattr(model.module, "config", None)
    if not isinstance(config, ModelConfig):
        raise ProtlmError("the recipe's MODEL is none of protlm_jax.t5x_bridge.models")
    begin = time.monotonic()
    with _seen(pod.devices):
        mesh, states, trainer = assembled(model, train_dataset_cfg, partitioner, trainer_cls)
        abstract, axes = states.global_train_state_shape, states.train_state_axes
        batch = abstract_batch(model, train_dataset_cfg)
        with trainer:
            lowered = trainer._partitioned_train_step.lower(abstract, batch)
    length = max(train_dataset_cfg.task_feature_lengths.values())
    rows, parts = train_dataset_cfg.batch_size, trainer._num_microbatches or 1
    flops = training_flops_per_token(config, length, model.objective.queries(length))
    shapes = {"rows": rows, "length": length, "accumulate": parts}
    return Plan(
        phase="",
        topology=pod.name,
        mesh=dict(mesh.shape),
        dtype=config.dtype,
        remat=config.remat,
        parameters=parameter_count(abstract.params),
        state_bytes=_state_bytes(abstract, axes, mesh),
        available_bytes=pod.hbm,
        whole=[],
        chosen="",
        **shapes,
        **measure(
            lowered,
            pod,
            mesh,
            lambda: suggest(config, rows, parts, dict(mesh.shape)),
            steps=total_steps,
            model_flops=flops * rows * length,
            **shapes,
        ),
        compile_seconds=time.monotonic() - begin,
    )


def assembled(model: Any, data: Any, partitioner: Any, trainer_cls: Any) -> tuple[Any, Any, Any]:
    """The mesh, the state's shapes and how it is laid out, and the trainer, as T5X makes them."""
    batch = abstract_batch(model, data)
    states = utils.TrainStateInitializer(
        optimizer_def=model.optimizer_def,
        init_fn=model.get_initial_variables,
        input_shapes={name: leaf.shape for name, leaf in batch.items()},
        input_types={name: leaf.dtype for name, leaf in batch.items()},
        partitioner=partitioner,
    )
    trainer = trainer_cls(
        model=model,
        train_state=states.global_train_state_shape,
        partitioner=partitioner,
        eval_names=(),
        summary_dir=None,
        train_state_axes=states.train_state_axes,
        rng=jax.random.PRNGKey(0),
    )
    return partitioner.mesh, states, trainer


def abstract_batch(model: Any, data: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a batch as T5X's data road makes it, all rows of all hosts."""
    converter = model.FEATURE_CONVERTER_CLS(pack=data.pack)
    examples = tf.data.Dataset.from_tensors(
        {name: tf.ones([2], tf.int32) for name in data.task_feature_lengths}
    )
    spec = converter(examples, data.task_feature_lengths).element_spec
    return {
        name: jax.ShapeDtypeStruct((data.batch_size, *leaf.shape), leaf.dtype.as_numpy_dtype)
        for name, leaf in spec.items()
    }


def suggest(config: ModelConfig, rows: int, parts: int, mesh: dict[str, int]) -> str:
    """What to change first where it does not fit: what costs the least speed."""
    if config.remat != "full":
        return "models.architecture.remat = 'full'"
    if rows // parts > mesh["data"]:
        return f"--gin.trainer.Trainer.num_microbatches={2 * parts}"
    return f"--gin.partitioning.Partitioner.num_partitions={2 * mesh['model']}"


def _state_bytes(abstract: Any, axes: Any, mesh: Any) -> int:
    shapes = flatten_dict(abstract.state_dict(), sep="/")
    specs = flatten_dict(axes.state_dict(), sep="/")
    layout = {name: NamedSharding(mesh, specs[name] or PartitionSpec()) for name in shapes}
    return bytes_on_device(shapes, layout)


@contextlib.contextmanager
def _seen(devices: list[Any]) -> Iterator[None]:
    """T5X asks JAX for devices where it makes a mesh, and whether they are CPUs where it traces."""
    local = [device for device in devices if device.process_index == 0]
    with (
        mock.patch.object(jax, "devices", lambda *_: devices),
        mock.patch.object(jax, "local_devices", lambda *_, **__: local),
    ):
        yield


def main(argv: list[str] | None = None) -> int:
    """Prints the plan; 0 when it was made."""
    parser = argparse.ArgumentParser(prog="python -m protlm_jax.t5x_bridge.plan")
    parser.add_argument("--gin_file", action="append", required=True)
    parser.add_argument("--gin_bindings", action="append", default=[])
    parser.add_argument("--topology", required=True)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args(argv)
    absl_logging.set_verbosity(absl_logging.ERROR)
    jax.config.update("jax_enable_compilation_cache", False)  # cannot be read without the pod
    try:
        plan = _planned(arguments)
    except ProtlmError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(table([plan]))
    if arguments.output is not None:
        write_atomically(arguments.output, json.dumps({"phases": [plan.to_dict()]}, indent=1))
    return 0


def _planned(arguments: argparse.Namespace) -> Plan:
    pod = topology(arguments.topology)
    compile_step = configurable(train)
    package = Path(__file__).parents[1]  # gin/x.gin, and x.gin alone
    roots = [".", str(package), str(package / "gin"), *(str(Path(p).parent) for p in t5x.__path__)]
    files = ", ".join(arguments.gin_file)
    try:
        bindings = [NOWHERE, *arguments.gin_bindings]
        gin_utils.parse_gin_flags(roots, arguments.gin_file, bindings)
    except Exception as error:  # what the modules raise that a recipe names, and gin's own
        raise ProtlmError(f"{files}: {_first_line(error)}") from error
    try:
        plan: Plan = compile_step(pod=pod)
    except TypeError as error:  # a parameter was bound that does not exist
        raise ProtlmError(f"{files}: {_first_line(error)}") from error
    return plan


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


if __name__ == "__main__":
    sys.exit(main())
