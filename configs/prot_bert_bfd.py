"""ProtBert-BFD: ProtBert on the 2.1 billion proteins of BFD, rows of 512 and then of 2048 tokens.

    protlm prepare --dataset bfd --input bfd.fasta.gz --output data/bfd --tokens
    protlm train --config configs/prot_bert_bfd.py --workdir runs/prot_bert_bfd \\
        --config.data.prepared=data/bfd

Hardware of the paper: one TPU pod v3-1024. Seen: 800,000 x 32,768 + 200,000 x 6,144 rows, 27
billion sequences, 16 trillion tokens with padding.

From the model card: steps, lengths, LAMB, rate 0.002, weight decay 0.01, one warmup of 140,000
steps, linear decay. From its config.json: the architecture, no dropout. The card says 32k and 6k
rows; 32,768 and 6,144 are from memory.

Not known, and where we differ: as in `configs/prot_bert_uniref100.py`. A BFD protein has 185
residues on average, so that a packed row of 512 tokens holds 2.7 of them.
"""

from ml_collections import ConfigDict

from protlm_jax.config.prottrans import recipe


def get_config() -> ConfigDict:
    """Returns the two phases."""
    return recipe(
        "prot_bert",
        "BFD",
        {
            "name": "length512",
            "config": {"data": {"length": 512}, "train": {"steps": 800_000, "batch_size": 32_768}},
        },
        {
            "name": "length2048",
            "config": {"data": {"length": 2048}, "train": {"steps": 200_000, "batch_size": 6144}},
            "optimizer": "keep",
            "schedule": "continue",
        },
        objective={"name": "masked"},
        optimizer={"name": "lamb", "weight_decay": 0.01, "clip_norm": 1.0},
        schedule={"name": "linear", "learning_rate": 2e-3, "warmup_steps": 140_000},
        train={},
    )
