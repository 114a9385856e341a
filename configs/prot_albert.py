"""ProtAlbert on UniRef100: one block's parameters for all layers, rows of 512 and then of 2048.

    protlm prepare --dataset uniref100 --release 2024_01 --input uniref100.fasta.gz \\
        --output data/uniref100 --tokens
    protlm train --config configs/prot_albert.py --workdir runs/prot_albert \\
        --config.data.prepared=data/uniref100

Hardware of the paper: one TPU pod v3-512. Seen in the first phase: 150,000 x 10,752 rows, 1.6
billion sequences, 0.8 trillion tokens with padding.

The width is confirmed by the size of the released file and by its users. From notes on the paper:
64 heads, 10,752 rows in the first phase, warmups of 40,000 and 5,000 steps, which is why the
schedule starts again. From memory: 12 layers (they share parameters, so that the file cannot tell),
150,000 steps in each phase (the notes say 100,000 for the second), LAMB with rate 0.002.

Not known: the rows of the second phase (here 2,560: a quarter would be as many tokens, and does not
divide over 512 cores), weight decay, linear decay and clipping (those of Google's ALBERT), and its
tokenizer: ours has ids of its own. Google's code begins a phase with empty moments, and so does
this. Masked spans of up to three residues, as ALBERT has them, are an option:
`--config.objective.ngram=3`. What is common to all recipes: `protlm_jax/config/prottrans.py`.
"""

from ml_collections import ConfigDict

from protlm_jax.config.prottrans import recipe


def get_config() -> ConfigDict:
    """Returns the two phases."""
    return recipe(
        "prot_albert",
        "UniRef100",
        {
            "name": "length512",
            "config": {"data": {"length": 512}, "train": {"steps": 150_000, "batch_size": 10_752}},
        },
        {
            "name": "length2048",
            "config": {
                "data": {"length": 2048},
                "schedule": {"warmup_steps": 5000},
                "train": {"steps": 150_000, "batch_size": 2560, "accumulate": 5},
            },
            "optimizer": "reset",
            "schedule": "restart",
        },
        objective={"name": "masked"},
        optimizer={"name": "lamb", "weight_decay": 0.01, "clip_norm": 1.0},
        schedule={"name": "linear", "learning_rate": 2e-3, "warmup_steps": 40_000},
        train={},
    )
