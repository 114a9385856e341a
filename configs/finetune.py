"""Fine-tune a model on labelled proteins: adapters, all parameters, the last layers, or a head.

    protlm finetune --config configs/finetune.py:lora --model MODEL --input mine.csv --workdir W

Hardware: any that holds the model. The variants differ in what is trained and how fast; any field
can be overridden, for instance `--config.tune.rank=4` or `--config.train.steps=3000`. `schmirler`
has the published settings of Schmirler et al. 2024 (doi:10.1038/s41467-024-51844-2) for LoRA on any
of their tasks, and `schmirler_full` those for all parameters, which they recommend below 650M
parameters. Rates of 3e-4 for adapters and 2e-5 for all parameters are theirs.
"""

from ml_collections import ConfigDict

LORA = {"method": "lora", "rank": 8, "alpha": 16.0, "targets": ("query", "key", "value", "out")}
# ESM: query, key, value, dense, which are all maps of a layer.
SCHMIRLER = {"method": "lora", "rank": 4, "alpha": 1.0,
             "targets": ("query", "key", "value", "out", "wi", "wo")}  # fmt: skip
VARIANTS = {
    "lora": (LORA, 1e-3),
    "full": ({"method": "all"}, 1e-4),
    "last": ({"method": "last", "layers": 2}, 3e-4),
    "head": ({"method": "head"}, 3e-3),
    "schmirler": (SCHMIRLER, 3e-4),
    "schmirler_full": ({"method": "all"}, 2e-5),
}


def get_config(variant: str = "lora") -> ConfigDict:
    """Returns a config without model and labels, which the verb gives."""
    tune, rate = VARIANTS[variant]
    config = ConfigDict()
    config.tune = ConfigDict(tune)
    config.objective = ConfigDict({"name": "labels", "dropout": 0.2})
    config.objective.dense = variant.startswith("schmirler")
    config.optimizer = ConfigDict({"name": "adamw", "weight_decay": 0.01, "clip_norm": 1.0})
    config.schedule = ConfigDict({"name": "linear", "learning_rate": rate, "warmup_steps": 50})
    config.train = ConfigDict({"steps": 1000, "batch_size": 8, "patience": 5, "keep": 1})
    config.train.evaluate_every = config.train.checkpoint_every = 100
    config.train.evaluate_batches = 1_000_000  # all validation proteins
    return config
