"""ProtT5-XXL-BFD: 11.3 billion parameters; otherwise ProtT5-XL-BFD.

    protlm prepare --dataset bfd --input bfd.fasta.gz --output data/bfd --tokens
    protlm train --config configs/prot_t5_xxl_bfd.py --workdir runs/prot_t5_xxl_bfd \\
        --config.data.prepared=data/bfd

Hardware of the paper: 1,024 cores of TPU v3, models split 32 ways. Seen: 920,000 x 4,096 rows, 3.8
billion sequences, 1.9 trillion tokens with padding.

From its config.json: the architecture, no dropout. From the model cards: Adafactor, inverse square
root, 512 tokens, the objective. From notes on the paper: 920 thousand steps. From memory: 4k rows.

Where we differ: as in `configs/prot_t5_xl_bfd.py` (32 ways: `--config.mesh.fsdp=1
--config.mesh.tensor=32`).
"""

from ml_collections import ConfigDict

from protlm_jax.config.prottrans import prot_t5, recipe


def get_config() -> ConfigDict:
    """Returns the run."""
    return recipe(
        "prot_t5_xxl",
        "BFD",
        **prot_t5(),
        overrides={"dropout_rate": 0.0},
        train={"steps": 920_000, "batch_size": 4096},
    )
