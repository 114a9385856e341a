"""The model card of an export: what it is, what it was trained on, how to load it."""

from __future__ import annotations

from collections.abc import Mapping

from protlm_jax import models
from protlm_jax.huggingface.convert import EXCHANGES
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
from transformers import AutoTokenizer, {imports}

tokenizer = AutoTokenizer.from_pretrained("{title}"{trust})
batch = tokenizer(["MKTAYIAKQR", "M K V L A A G"], padding=True, return_tensors="pt")
{usage}
residues = [h[{first}:{first} + n] for h, n in zip(hidden, (10, 7))]  # without specials and padding
```

The tokenizer splits a sequence into residues itself: spaces between them are optional. It reads
lower case as upper case{rare}. A character that is no amino acid (`*`, `-`, J,
digits) becomes `{unknown}` without a word, since a tokenizer cannot refuse; the model has never
seen that token, so clean such sequences first.
"""


def model_card(
    loaded: LoadedModel, title: str, training: str, rare_residues: str, metrics: Mapping[str, float]
) -> str:
    """The text of README.md.

    Args:
        loaded: the model.
        title: name of the exported folder.
        training: a paragraph on what it was trained on; empty when that is not known.
        rare_residues: "X" or "keep", what the tokenizer makes of U, Z, O and B.
        metrics: measured numbers by what they measure.
    """
    config = loaded.config
    exchange = EXCHANGES[config.family]
    depth = f"{config.num_layers} layers"
    if config.num_decoder_layers:
        depth = f"{config.num_layers} encoder and {config.num_decoder_layers} decoder layers"
    rows = "\n".join(f"| {name} | {value:.4g} |" for name, value in metrics.items())
    return _TEMPLATE.format(
        task=exchange.task,
        title=title,
        family=config.family.upper(),
        parameters=models.parameter_count(loaded.params),
        shape=f"{depth}, width {config.d_model}, {config.num_heads} heads",
        training=training.strip() or "What it was trained on was not recorded.",
        metrics=f"\n| measured | value |\n| --- | --- |\n{rows}\n" if metrics else "",
        imports=exchange.imports,
        usage=exchange.usage.format(title=title).strip(),
        trust=", trust_remote_code=True" if exchange.trust else "",
        first=len(loaded.vocabulary.prefix_ids),
        rare=" and U, Z, O and B as X" if rare_residues == "X" else "",
        unknown=loaded.vocabulary.tokens[loaded.vocabulary.unk_id],
    )
