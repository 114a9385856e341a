"""Small models that learn something real on a laptop: `bert` (the quickstart) and `t5`.

    protlm train --config configs/tiny.py:bert --workdir runs/bert

Trains on the bundled proteins (20,000 from Swiss-Prot 2014). Hardware: two CPU cores. Seen there:
`bert` takes six minutes and reaches 2.845 nats per hidden residue on held-out proteins, where the
training frequencies give 2.894 and each protein's own composition 2.860.
"""

from ml_collections import ConfigDict

from protlm_jax.models.config import ModelConfig
from protlm_jax.models.families.bert import bert_config
from protlm_jax.models.families.t5 import t5_config


def get_config(variant: str = "bert") -> ConfigDict:
    """Returns the config of `bert` or `t5`."""
    if variant not in ("bert", "t5"):
        raise ValueError(f"configs/tiny.py has the variants bert and t5, not {variant!r}")
    config = ConfigDict()
    model = bert_model() if variant == "bert" else t5_model()
    config.model = ConfigDict(model.to_dict())
    config.objective = ConfigDict({"name": "masked" if variant == "bert" else "denoising"})
    config.data = ConfigDict(
        {
            # Tokens per row: 512 as in ProtBert's first phase, whole proteins.
            "length": 512 if variant == "bert" else 256,
            "task": "tokens" if variant == "bert" else "prott5",
            "heldout_percent": 2.0,  # about 400 proteins, by a hash of the sequence
        }
    )
    config.optimizer = ConfigDict(
        {"name": "adamw", "weight_decay": 0.01, "clip_norm": 1.0, "b2": 0.98}
    )
    config.schedule = ConfigDict({"name": "cosine", "learning_rate": 1.5e-3, "warmup_steps": 100})
    config.train = ConfigDict(
        {
            "steps": 1400 if variant == "bert" else 900,
            "batch_size": 8,  # rows
            "log_every": 20,
            "evaluate_every": 200,
            "evaluate_batches": 4,
            "checkpoint_every": 100,
        }
    )
    return config


def bert_model() -> ModelConfig:
    """ProtBert's architecture, 4 layers of width 96; few heads, which is what costs on CPU."""
    return bert_config(
        d_model=96,
        num_layers=4,
        num_heads=2,
        head_dim=48,
        d_ff=384,
        max_positions=512,
        position_init="sinusoidal",  # a run this short has no time to learn neighbourhood
        initializer_range=0.05,  # ProtBert's 0.02 suits a width of 1024
    )


def t5_model() -> ModelConfig:
    """ProtT5's architecture, 3 + 3 layers of width 96; no dropout in less than an epoch."""
    return t5_config(
        d_model=96,
        num_layers=3,
        num_decoder_layers=3,
        num_heads=2,
        head_dim=48,
        d_ff=384,
        dropout_rate=0.0,
        mlp_dropout=False,
    )
