"""Where a T5X run starts from, when nothing lies in its model_dir yet.

For `train_script.train.train_state_initializer_cls`. T5X's own way, RestoreCheckpointConfig, also
takes over the state of the data where a run saves that of its own (`save_dataset`), which is of no
use with other data, and fails where a checkpoint has none.
"""

from __future__ import annotations

import os
from typing import Any

import jax
import numpy as np
from flax.core import freeze, unfreeze
from flax.traverse_util import flatten_dict, unflatten_dict
from t5x import checkpoints, utils

from protlm_jax.errors import ProtlmError
from protlm_jax.huggingface import load_model


class FromModel(utils.TrainStateInitializer):
    """Parameters of any model that `--model` takes; step 0, and the optimizer's state is new.

    Args:
        source: a run, a checkpoint, a Hugging Face folder, a model_dir of T5X, or an id on the Hub,
            which every host can read.
    """

    def __init__(self, *arguments: Any, source: str, **rest: Any) -> None:
        super().__init__(*arguments, **rest)
        self._source = source

    def from_scratch(self, init_rng: jax.Array) -> Any:
        """The first state.

        Raises:
            ProtlmError: no model there, or one of other parameters.
        """
        state = super().from_scratch(init_rng)
        stored = flatten_dict(load_model(self._source).params, sep="/")
        fresh = flatten_dict(unfreeze(state.params), sep="/")
        for name in sorted(stored.keys() | fresh.keys()):
            there, here = (
                list(tree[name].shape) if name in tree else "missing" for tree in (stored, fresh)
            )
            if there != here:
                raise ProtlmError(
                    f"{self._source}: parameter {name} is {there} there and {here} in this recipe: "
                    f"the model must be the same one"
                )
        placed = {name: _placed(np.asarray(stored[name]), leaf) for name, leaf in fresh.items()}
        return state.replace_params(freeze(unflatten_dict(placed, sep="/")))


class FromCheckpoint(utils.TrainStateInitializer):
    """Step, parameters and optimizer's state of a T5X checkpoint, and nothing of its data.

    Args:
        checkpoint: `<model_dir>/checkpoint_<step>`, of the same model and optimizer.
    """

    def __init__(self, *arguments: Any, checkpoint: str, **rest: Any) -> None:
        super().__init__(*arguments, **rest)
        self._checkpoint = checkpoint

    def from_scratch(self, init_rng: jax.Array) -> Any:
        """The state of the checkpoint."""
        manager = checkpoints.OrbaxCheckpointManagerInterface(
            os.path.dirname(self._checkpoint.rstrip("/")),
            self.global_train_state_shape,
            self._partitioner,
            restore_dtype=np.dtype(np.float32),
        )
        try:
            return manager.restore(path=self._checkpoint.rstrip("/"))
        finally:
            manager.close()


def _placed(stored: np.ndarray, leaf: jax.Array) -> jax.Array:
    """A stored array laid out over devices as `leaf` is."""
    return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda part: stored[part])
