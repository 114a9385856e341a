"""ProtBert on UniRef100: masked residues, 30 layers, rows of 512 and then of 2048 tokens.

    protlm prepare --dataset uniref100 --release 2024_01 --input uniref100.fasta.gz \\
        --output data/uniref100 --tokens
    protlm train --config configs/prot_bert_uniref100.py --workdir runs/prot_bert \\
        --config.data.prepared=data/uniref100

Hardware of the paper: one TPU pod v3-512. Seen: 300,000 x 15,360 + 100,000 x 2,560 rows, 4.9
billion sequences, 2.9 trillion tokens with padding.

From the model card: steps, lengths, LAMB, rate 0.002, weight decay 0.01, one warmup of 40,000
steps, linear decay, 15 % masked as 80/10/10, UniRef100 with 217 million proteins. From its
config.json: the architecture, no dropout. The card says 15k and 2.5k rows; 15,360 and 2,560 are
from memory.

Not known: whether the decay ran over all 400,000 steps, as here, and with which moments the second
phase began (here: those of the first). Google's own BERT decays from step 0 on, so that its rate
falls from 0.002 to 0.0018 where the warmup ends; here it decays from there. Gradients are clipped
at 1, as there. Its rows hold two proteins, `[CLS] A [SEP] B [SEP]`, that see each other; ours see
themselves alone. What is common to all recipes: `protlm_jax/config/prottrans.py`.
"""

from ml_collections import ConfigDict

from protlm_jax.config.prottrans import recipe


def get_config() -> ConfigDict:
    """Returns the two phases."""
    return recipe(
        "prot_bert",
        "UniRef100",
        {
            "name": "length512",
            "config": {"data": {"length": 512}, "train": {"steps": 300_000, "batch_size": 15_360}},
        },
        {
            "name": "length2048",
            "config": {"data": {"length": 2048}, "train": {"steps": 100_000, "batch_size": 2560}},
            "optimizer": "keep",
            "schedule": "continue",
        },
        objective={"name": "masked"},
        optimizer={"name": "lamb", "weight_decay": 0.01, "clip_norm": 1.0},
        schedule={"name": "linear", "learning_rate": 2e-3, "warmup_steps": 40_000},
        train={},
    )
