"""ProtT5-XXL-U50: ProtT5-XXL-BFD, and then UniRef50 from its last checkpoint; rows of 512 tokens.

    protlm prepare --dataset bfd --input bfd.fasta.gz --output data/bfd --tokens
    protlm prepare --dataset uniref50 --release 2024_01 --input uniref50.fasta.gz \\
        --output data/uniref50 --tokens
    protlm train --config configs/prot_t5_xxl_uniref50.py --workdir runs/prot_t5_xxl \\
        --config.phases.bfd.data.prepared=data/bfd \\
        --config.phases.uniref50.data.prepared=data/uniref50

`configs/prot_t5_xxl_uniref50.py:uniref50` with `--config.init_from=MODEL` makes the second part
alone. Hardware of the paper: TPU pods, the first of 1,024 cores of v3. Seen: 920,000 x 4,096 rows
of BFD and 343,000 x 2,048 of UniRef50, 3.8 and 0.7 billion sequences, 2.3 trillion tokens with
padding.

From its config.json: the architecture, dropout 0.1 in the second part and none in the first. From
notes on the paper: 920 and 343 thousand steps. From memory: 4k and 2k rows.

Not known, and where we differ: as in `configs/prot_t5_xl_uniref50.py`.
"""

from ml_collections import ConfigDict

from protlm_jax.config.prottrans import after_bfd

VARIANTS = ("both", "uniref50")


def get_config(variant: str = "both") -> ConfigDict:
    """Returns `both` phases, or `uniref50` alone."""
    first = {"dropout_rate": 0.0}
    return after_bfd("prot_t5_xxl", variant, (920_000, 4096), (343_000, 2048), bfd_model=first)
