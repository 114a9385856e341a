"""One shallow model and two deep ones that cost as much, in one sense or another.

    python benchmarks/depth_study.py --output runs/depth_study
    protlm train --config configs/depth_study.py:deep_narrow --workdir runs/deep_narrow

The first command tunes, trains, measures and compares them all; docs/study/README.md says what came
of it. Hardware: two CPU cores. ESM-2's architecture, because it is the pre-LN one of the published
masked models.
"""

import dataclasses

from ml_collections import ConfigDict

from protlm_jax.models.config import ModelConfig
from protlm_jax.models.families.esm2 import esm2_config

LENGTH = 128  # tokens in a row


@dataclasses.dataclass(frozen=True)
class Arm:
    """A model and the rows of one update; the number of updates is the same for all."""

    model: ModelConfig
    rows: int
    learning_rate: float = 2e-3


def _model(num_layers: int, d_model: int) -> ModelConfig:
    return esm2_config(
        num_layers=num_layers,
        d_model=d_model,
        num_heads=d_model // 16,
        head_dim=16,
        d_ff=4 * d_model,
        initializer_range=0.05,  # as in configs/tiny.py: 0.02 suits a width of 1024
    )


VARIANTS = {
    "shallow": Arm(_model(3, 64), 8),
    # Half as wide and four times as deep: as many parameters, and as many residues.
    "deep_narrow": Arm(_model(12, 32), 8),
    # As wide and four times as deep: as many operations in an update, for a quarter of the rows.
    "deep_wide": Arm(_model(12, 64), 2),
}


def get_config(variant: str = "shallow") -> ConfigDict:
    """The config of one of VARIANTS."""
    arm = VARIANTS[variant]
    config = ConfigDict()
    config.model = ConfigDict(arm.model.to_dict())
    config.objective = ConfigDict({"name": "masked"})
    # About 400 proteins: half of them choose the learning rate, the others are measured on.
    config.data = ConfigDict({"length": LENGTH, "task": "tokens", "heldout_percent": 2.0})
    config.optimizer = ConfigDict(
        {"name": "adamw", "weight_decay": 0.01, "clip_norm": 1.0, "b2": 0.98}
    )
    config.schedule = ConfigDict(
        {"name": "cosine", "learning_rate": arm.learning_rate, "warmup_steps": 200}
    )
    config.train = ConfigDict(
        {
            "steps": 4000,  # of 1,024 tokens: four fifths of an epoch
            "batch_size": arm.rows,
            "log_every": 200,
            "evaluate_every": 0,
            "checkpoint_every": 1000,
            "keep": 1,
        }
    )
    return config
