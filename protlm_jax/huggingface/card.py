"""The model card of an export: what it is, what it was trained on, how to load it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from protlm_jax import models
from protlm_jax.huggingface.convert import EXCHANGES
from protlm_jax.huggingface.tensor_files import read_json
from protlm_jax.models import LoadedModel

_TEMPLATE = """\
---
library_name: transformers
pipeline_tag: {task}
tags:
- biology
- protein-language-model
---

# {title}

A protein language model of the {family} family with {parameters:,} parameters: {shape}.
Pretrained with protlm_jax.

## Training

{training}
{metrics}
## How to load it

```python
from transformers import AutoTokenizer, {classes}

tokenizer = AutoTokenizer.from_pretrained("{title}")
model = {architecture}.from_pretrained("{title}")

batch = tokenizer(["MKTAYIAKQR", "M K V L A A G"], padding=True, return_tensors="pt")
{use}
residues = [h[{first}:{first} + n] for h, n in zip(hidden, (10, 7))]  # without specials and padding
```

The tokenizer splits a sequence into residues itself: spaces between them are optional. It reads
lower case as upper case and U, Z, O and B as X. A character that is no amino acid (`*`, `-`, J,
digits) becomes `{unknown}` without a word, since a tokenizer cannot refuse; the model has never
seen that token, so clean such sequences first.
"""

_USE = {
    "bert": (
        "AutoModelForMaskedLM",
        "AutoModelForMaskedLM",
        "logits = model(**batch).logits  # over the 30 tokens, at each residue\n"
        "hidden = model.bert(**batch).last_hidden_state",
    ),
    "t5": (
        "T5EncoderModel, T5ForConditionalGeneration",
        "T5ForConditionalGeneration",
        'encoder = T5EncoderModel.from_pretrained("{title}")  # enough for embeddings\n'
        "hidden = encoder(**batch).last_hidden_state\n"
        "# A hidden residue is written <extra_id_0>; the decoder spells the whole protein out.",
    ),
}


def model_card(loaded: LoadedModel, title: str, training: str, metrics: Mapping[str, float]) -> str:
    """The text of README.md.

    Args:
        loaded: the model.
        title: name of the exported folder.
        training: a paragraph on what it was trained on; empty when that is not known.
        metrics: measured numbers by what they measure.
    """
    config = loaded.config
    classes, architecture, use = _USE[config.family]
    depth = f"{config.num_layers} layers"
    if config.num_decoder_layers:
        depth = f"{config.num_layers} encoder and {config.num_decoder_layers} decoder layers"
    rows = "\n".join(f"| {name} | {value:.4g} |" for name, value in metrics.items())
    return _TEMPLATE.format(
        task=EXCHANGES[config.family].task,
        title=title,
        family=config.family.upper(),
        parameters=models.parameter_count(loaded.params),
        shape=f"{depth}, width {config.d_model}, {config.num_heads} heads",
        training=training.strip() or "What it was trained on was not recorded.",
        metrics=f"\n| measured | value |\n| --- | --- |\n{rows}\n" if metrics else "",
        classes=classes,
        architecture=architecture,
        use=use.format(title=title),
        first=loaded.vocabulary.num_specials - 1,
        unknown=loaded.vocabulary.tokens[loaded.vocabulary.unk_id],
    )


def describe_training(path: str | Path) -> str:
    """A paragraph for the model card, from the config.json of a run's folder or a checkpoint's run.

    Empty when the folder is no run, as for a Hugging Face folder.
    """
    folder = Path(path).resolve()
    run = folder.parents[1] if folder.parent.name == "checkpoints" else folder
    if not (run / "config.json").exists():
        return ""
    fields: dict[str, Any] = read_json(run / "config.json")
    if "train" not in fields:
        origin = fields.get("imported_from")
        return f"Imported from a Hugging Face folder named {origin}." if origin else ""
    from protlm_jax.training.checkpoints import latest_step

    step = folder.name if run != folder else latest_step(run / "checkpoints")
    train, data = fields["train"], fields["data"]
    proteins = Path(data["fasta"]).name if data.get("fasta") else "the bundled Swiss-Prot sample"
    return (
        f"Trained on {proteins} for {step} steps of {train['batch_size']} rows of {data['length']} "
        f"tokens, objective `{fields['objective']['name']}`, optimizer "
        f"{fields['optimizer']['name']}, seed {train['seed']}."
    )
