"""ProtT5-XL-BFD: 2.8 billion parameters, the whole protein from its corrupted copy, rows of 512.

    protlm prepare --dataset bfd --input bfd.fasta.gz --output data/bfd --tokens
    protlm train --config configs/prot_t5_xl_bfd.py --workdir runs/prot_t5_xl_bfd \\
        --config.data.prepared=data/bfd

Hardware of the paper: one TPU pod v3-1024, models split 8 ways. Seen: 1,200,000 x 4,096 rows, 4.9
billion sequences, 2.5 trillion tokens with padding.

From the model card: steps, 4k rows, 512 tokens, Adafactor, inverse square root; 15 % of the
residues chosen, 90 % of them hidden and 10 % replaced, the whole sequence as the target. From its
config.json: the architecture, dropout 0.1. T5's schedule is 1 / sqrt(max(step, 10,000)), so that
the rate is 0.01 at first, as the paper says.

Where we differ: the card cuts and pads to 512 tokens, one protein a row; we pack. Parameters are
gathered from 64 cores, layer by layer, instead of split 8 ways: `--config.mesh.fsdp=1
--config.mesh.tensor=8` does as the paper did. What is common to all recipes:
`protlm_jax/config/prottrans.py`.
"""

from ml_collections import ConfigDict

from protlm_jax.config.prottrans import prot_t5, recipe


def get_config() -> ConfigDict:
    """Returns the run."""
    return recipe("prot_t5_xl", "BFD", **prot_t5(), train={"steps": 1_200_000, "batch_size": 4096})
