"""ProtT5-XL-U50: ProtT5-XL-BFD, and then UniRef50 from its last checkpoint; rows of 512 tokens.

    protlm prepare --dataset bfd --input bfd.fasta.gz --output data/bfd --tokens
    protlm prepare --dataset uniref50 --release 2024_01 --input uniref50.fasta.gz \\
        --output data/uniref50 --tokens
    protlm train --config configs/prot_t5_xl_uniref50.py --workdir runs/prot_t5_xl \\
        --config.phases.bfd.data.prepared=data/bfd \\
        --config.phases.uniref50.data.prepared=data/uniref50

The second part alone, from a model that is there already:

    protlm train --config configs/prot_t5_xl_uniref50.py:uniref50 --workdir runs/prot_t5_xl_u50 \\
        --config.init_from=MODEL --config.data.prepared=data/uniref50

Hardware of the paper: TPU pods v3-1024 and then v2-256. Seen: 1,200,000 x 4,096 rows of BFD and
991,500 x 2,048 of UniRef50, 4.9 and 2.0 billion sequences, 3.6 trillion tokens with padding. It is
the second part that makes the model good: in the paper's notes secondary structure gains 2.8 to 3.9
points.

From the model cards: 4k and 2k rows, Adafactor, inverse square root, the objective, the first
model's steps. From notes on the paper: 991 thousand steps; the 500 beyond are from memory (an early
card said 600 thousand).

Not known: whether the rate went on from the first part. Here it does (0.0009 falling to 0.0007) and
Adafactor's moments are kept, as T5 goes on counting when it is fine-tuned; the variant `uniref50`
starts with empty moments at the rate that the first part would have reached. Where we differ: as in
`configs/prot_t5_xl_bfd.py`.
"""

from ml_collections import ConfigDict

from protlm_jax.config.prottrans import after_bfd

VARIANTS = ("both", "uniref50")


def get_config(variant: str = "both") -> ConfigDict:
    """Returns `both` phases, or `uniref50` alone."""
    return after_bfd("prot_t5_xl", variant, (1_200_000, 4096), (991_500, 2048))
