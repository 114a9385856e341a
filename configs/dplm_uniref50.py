"""DPLM (Wang et al. 2024) on UniRef50, in the sizes 150m, 650m and 3b; 650m by default.

    protlm prepare --dataset uniref50 --release 2024_01 --input uniref50.fasta.gz \\
        --output data/uniref50 --tokens
    protlm train --config configs/dplm_uniref50.py:150m --workdir runs/dplm_150m \\
        --config.data.prepared=data/uniref50

Hardware of the paper: GPUs. From the authors' configs for 650m: 500,000 updates, AdamW with b2 0.98
and weight decay 0.01, rate 4e-5 after a warmup of 2,000 updates, falling to 1e-5 along a line, 500
levels of noise, losses weighted linearly, dropout 0.1, rows of at most 1,022 residues. From notes
on the paper: about a million tokens in an update.

Their other way is 100,000 updates from an ESM-2: `--config.init_from=esm2_t33_650M_UR50D
--config.train.steps=100000 --config.schedule.total_steps=132666`, after writing
`"dplm_type": "dplm_esm"` into that folder's config.json.

Where we differ: rows are packed, so that nearly all tokens are residues, and each protein of a row
has a noise level of its own. Precision, held-out proteins and long proteins: as in
`protlm_jax/config/prottrans.py`. The mesh is ours, and has not been compiled for a pod: ask
`protlm plan`.
"""

from ml_collections import ConfigDict

from protlm_jax.config.prottrans import recipe

VARIANTS = {"150m": 1, "650m": 8, "3b": 32}  # devices that share one state


def get_config(size: str = "650m") -> ConfigDict:
    """The run of one size."""
    return recipe(
        f"dplm_{size}",
        "UniRef50",
        overrides={"dropout_rate": 0.1},
        objective={"name": "diffusion"},
        data={"length": 1024},
        optimizer={"name": "adamw", "weight_decay": 0.01, "b2": 0.98, "eps": 1e-8},
        # Zero would be reached here: at the last update the rate is a quarter of its peak.
        schedule={
            "name": "linear",
            "learning_rate": 4e-5,
            "warmup_steps": 2000,
            "total_steps": 666_000,
        },
        train={"steps": 500_000, "batch_size": 1024},
        mesh={"data": -1, "fsdp": VARIANTS[size]},
    )
