"""ESM-2 (Lin et al. 2023) on UniRef50, in the sizes 8m to 3b; 650m by default.

    protlm prepare --dataset uniref50 --release 2024_01 --input uniref50.fasta.gz \\
        --output data/uniref50 --tokens
    protlm train --config configs/esm2_uniref50.py:150m --workdir runs/esm2_150m \\
        --config.data.prepared=data/uniref50

Hardware of the paper: GPUs. Seen, quoted from the paper's supplement by others: 500,000 updates of
2 million tokens. From the published config.json: the architecture, no dropout. From memory: rows of
at most 1,024 tokens, Adam with b2 0.98 and weight decay 0.01, rate 4e-4 after a warmup of 2,000
updates, and BERT's 15 % with 80/10/10. The 15 billion model had another rate, batch and number of
updates, and is not here.

Where we differ:
- The paper drew a cluster of UniRef50 and then one of its members in UniRef90; here every cluster
  is its representative. About 60 million proteins each.
- From memory, the rate fell to a tenth of its peak over nine tenths of the run and stayed there;
  here it falls along the same line and goes on to zero.
- Rows are packed, so that nearly all of the 2,097,152 tokens of an update are residues.
- Precision, held-out proteins and long proteins: as in `protlm_jax/config/prottrans.py`.
- The mesh is ours, and has not been compiled for a pod: ask `protlm plan`.
"""

from ml_collections import ConfigDict

from protlm_jax.config.prottrans import recipe

VARIANTS = {"8m": 1, "35m": 1, "150m": 1, "650m": 8, "3b": 32}  # devices that share one state


def get_config(size: str = "650m") -> ConfigDict:
    """The run of one size."""
    return recipe(
        f"esm2_{size}",
        "UniRef50",
        objective={"name": "masked"},
        data={"length": 1024},
        optimizer={"name": "adamw", "weight_decay": 0.01, "b2": 0.98, "eps": 1e-8},
        schedule={"name": "linear", "learning_rate": 4e-4, "warmup_steps": 2000},
        train={"steps": 500_000, "batch_size": 2048},
        mesh={"data": -1, "fsdp": VARIANTS[size]},
    )
