"""Small models of every family that learn something real on a laptop.

    protlm train --config configs/tiny.py:bert --workdir runs/bert

Each trains on the bundled proteins (20,000 from Swiss-Prot 2014) in a few minutes. Hardware: two
CPU cores. `bert` and `t5` are what the quickstart trains. Seen there: `bert` takes six minutes and
reaches 2.845 nats per hidden residue on held-out proteins, where the training frequencies give
2.895 and each protein's own composition 2.860.
"""

import dataclasses

from ml_collections import ConfigDict

from protlm_jax.models.config import ModelConfig
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

# Width 96, few heads, which is what costs on CPU.
WIDTH = {"d_model": 96, "num_heads": 2, "head_dim": 48, "d_ff": 384}
# A run this short has no time to learn neighbourhood from noise, and ProtBert's initializer_range
# of 0.02 suits a width of 1024.
LEARNED = {"max_positions": 512, "position_init": "sinusoidal", "initializer_range": 0.05}


@dataclasses.dataclass(frozen=True)
class Variant:
    """A model, what trains it, and for how long; no dropout in less than an epoch."""

    model: ModelConfig
    objective: dict[str, object]
    task: str
    length: int  # tokens per row
    steps: int
    learning_rate: float = 1.5e-3


VARIANTS = {
    # 512 tokens as in ProtBert's first phase: whole proteins.
    "bert": Variant(
        bert_config(**WIDTH, **LEARNED, num_layers=4), {"name": "masked"}, "tokens", 512, 1400
    ),
    "roberta": Variant(
        roberta_config(**WIDTH, **LEARNED, num_layers=4), {"name": "masked"}, "tokens", 512, 1400
    ),
    "t5": Variant(
        t5_config(**WIDTH, num_layers=3, num_decoder_layers=3, dropout_rate=0.0, mlp_dropout=False),
        {"name": "denoising"},
        "prott5",
        256,
        900,
    ),
    "albert": Variant(
        albert_config(**WIDTH, **LEARNED, num_layers=4, embedding_size=32),
        {"name": "masked"},
        "tokens",
        256,
        1000,
    ),
    "esm2": Variant(
        esm2_config(**WIDTH, num_layers=4, initializer_range=0.05),
        {"name": "masked"},
        "tokens",
        256,
        1000,
    ),
    "saprot": Variant(
        esm2_config(
            **WIDTH, num_layers=4, vocabulary="saprot", vocab_size=446, initializer_range=0.05
        ),
        {"name": "masked"},
        "tokens",
        256,
        1000,
    ),
    "esmc": Variant(
        esmc_config(**{**WIDTH, "d_ff": 256}, num_layers=4, initializer_range=0.05),
        {"name": "masked"},
        "tokens",
        256,
        1000,
    ),
    "dplm": Variant(
        dplm_config(**WIDTH, num_layers=4, initializer_range=0.05),
        {"name": "diffusion"},
        "tokens",
        256,
        1000,
    ),
    "gpt2": Variant(
        gpt2_config(**WIDTH, **LEARNED, num_layers=4, dropout_rate=0.0),
        {"name": "causal"},
        "tokens",
        256,
        1000,
    ),
    "progen2": Variant(
        # Its files hold heads in groups of eight.
        progen2_config(
            **{**WIDTH, "num_heads": 8, "head_dim": 12},
            num_layers=4,
            rotary_dim=6,
            initializer_range=0.05,
        ),
        {"name": "causal", "reversed_rate": 0.5},
        "tokens",
        256,
        1000,
    ),
    "rita": Variant(
        rita_config(**WIDTH, num_layers=4, initializer_range=0.05),
        {"name": "causal", "reversed_rate": 0.5},
        "tokens",
        256,
        1000,
    ),
    "electra": Variant(
        # A discriminator compares each residue with its protein, which is second order in small
        # weights: it starts from larger ones, and learns at a lower rate.
        electra_config(**WIDTH, **{**LEARNED, "initializer_range": 0.1}, num_layers=4),
        {"name": "replaced_token", "rate": 0.25},  # as ProtElectra, from memory
        "tokens",
        256,
        1400,
        learning_rate=1e-3,
    ),
    "xlnet": Variant(
        xlnet_config(
            **WIDTH, num_layers=4, initializer_range=0.05, dropout_rate=0.0, mlp_dropout=False
        ),
        {"name": "permutation"},
        "tokens",
        256,
        1000,
    ),
    "txl": Variant(
        transformer_xl_config(
            **WIDTH,
            num_layers=4,
            initializer_range=0.05,
            dropout_rate=0.0,
            mlp_dropout=False,
            memory_length=256,
        ),
        {"name": "causal"},
        "stream",
        128,
        1000,
    ),
}


def get_config(variant: str = "bert") -> ConfigDict:
    """The config of one of VARIANTS."""
    chosen = VARIANTS[variant]
    config = ConfigDict()
    config.model = ConfigDict(chosen.model.to_dict())
    config.objective = ConfigDict(chosen.objective)
    config.data = ConfigDict(
        {
            "length": chosen.length,
            "task": chosen.task,
            "heldout_percent": 2.0,  # about 400 proteins, by a hash of the sequence
        }
    )
    config.optimizer = ConfigDict(
        {"name": "adamw", "weight_decay": 0.01, "clip_norm": 1.0, "b2": 0.98}
    )
    config.schedule = ConfigDict(
        {"name": "cosine", "learning_rate": chosen.learning_rate, "warmup_steps": 100}
    )
    config.train = ConfigDict(
        {
            "steps": chosen.steps,
            "batch_size": 8,  # rows
            "log_every": 20,
            "evaluate_every": 200,
            "evaluate_batches": 4,
            "checkpoint_every": 100,
        }
    )
    return config
