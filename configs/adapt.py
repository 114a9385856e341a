"""Continue the pretraining of any model on proteins of your own (domain adaptation).

    protlm train --config configs/adapt.py --workdir runs/mine \\
        --config.init_from=MODEL --config.data.fasta=my.fasta.gz

Hardware: any that holds the model. MODEL is a run of ours, one of its checkpoints, or a downloaded
Hugging Face folder. Architecture, vocabulary and objective are the model's own; any of them can be
overridden, for instance `--config.model.dtype=bfloat16` or `--config.model.max_positions=2048`.
`init.json` in the run's folder says what was taken. The rate is a tenth of what training from
nothing takes: too high a one unlearns. Compare `protlm evaluate --model MODEL --fasta
held-out.fasta` before and after.
"""

from ml_collections import ConfigDict

from protlm_jax.config.files import Required


def get_config() -> ConfigDict:
    """Returns a config without a model: the one that it starts from gives it."""
    config = ConfigDict()
    config.init_from = Required("a run, one of its checkpoints, or a Hugging Face folder")
    config.data = ConfigDict(
        {
            "fasta": Required("a FASTA file of the proteins to adapt to", "prepared", "your own"),
            "length": 512,  # tokens per row; whole proteins are packed into rows
            "heldout_percent": 5.0,
        }
    )
    config.optimizer = ConfigDict({"name": "adamw", "weight_decay": 0.01, "clip_norm": 1.0})
    config.schedule = ConfigDict({"name": "linear", "learning_rate": 1e-4, "warmup_steps": 100})
    config.train = ConfigDict(
        {"steps": 2000, "batch_size": 16, "evaluate_every": 200, "checkpoint_every": 200}
    )
    return config
