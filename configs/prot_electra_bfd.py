"""ProtElectra-BFD: a generator replaces residues, a discriminator finds them.

    protlm prepare --dataset bfd --input bfd.fasta.gz --output data/bfd --tokens
    protlm train --config configs/prot_electra_bfd.py --workdir runs/prot_electra_bfd \\
        --config.data.prepared=data/bfd

Rows of 512 and then of 1024 tokens. Hardware of the paper: one TPU pod v3-512. Seen: 400,000 x
9,216 + 400,000 x 3,584 rows, 5.1 billion sequences, 3.4 trillion tokens with padding.

Confirmed by the sizes of the released files: both architectures, a generator of a quarter of the
width. From notes on the paper: the steps, 9k and 3.5k rows (the nearest numbers that divide over
512 cores are taken). The notes say UniRef100, the released models say BFD. From memory: 25 %
masked, no dropout, rows of 1024 tokens in the second phase, LAMB with rate 0.002 and weight decay
0.01.

Not known: warmup (here ProtBert's 40,000 steps), whether the schedule is one, as here, and the
moments of the second phase (kept here). What is common to all recipes:
`protlm_jax/config/prottrans.py`.
"""

from ml_collections import ConfigDict

from protlm_jax.config.prottrans import recipe


def get_config() -> ConfigDict:
    """Returns the two phases."""
    return recipe(
        "prot_electra_bfd",
        "BFD",
        {
            "name": "length512",
            "config": {"data": {"length": 512}, "train": {"steps": 400_000, "batch_size": 9216}},
        },
        {
            "name": "length1024",
            "config": {"data": {"length": 1024}, "train": {"steps": 400_000, "batch_size": 3584}},
            "optimizer": "keep",
            "schedule": "continue",
        },
        objective={"name": "replaced_token", "rate": 0.25},
        optimizer={"name": "lamb", "weight_decay": 0.01, "clip_norm": 1.0},
        schedule={"name": "linear", "learning_rate": 2e-3, "warmup_steps": 40_000},
        train={},
    )
