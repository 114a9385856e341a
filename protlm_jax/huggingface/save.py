"""Writes a model as a folder that Hugging Face `transformers` 5 loads."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from safetensors.numpy import save_file

from protlm_jax import __version__, models
from protlm_jax.errors import ProtlmError
from protlm_jax.huggingface.convert import EXCHANGES, inexpressible, tensors
from protlm_jax.huggingface.folders import written_whole
from protlm_jax.huggingface.read_tokenizer import MARK
from protlm_jax.huggingface.tensor_files import SINGLE
from protlm_jax.huggingface.tokenizers import fits_esm, write_tokenizer
from protlm_jax.models import LoadedModel
from protlm_jax.models.folding import folded
from protlm_jax.models.loaded import parts_of
from protlm_jax.storage.files import umask
from protlm_jax.storage.json_files import read_json
from protlm_jax.vocabularies import Rare

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
{reads}. A character that is no amino acid (`*`, J, digits) becomes
`{unknown}` without a word, since a tokenizer cannot refuse; the model has never seen that token, so
clean such sequences first.
{tools}"""

_NOT_OPENED = """
Tools that guess a model's class from its tokenizer (biotrainer, to 2.1.1) cannot open this folder:
give them a file of `protlm embed --keys biotrainer`.
"""


def export(
    loaded: LoadedModel,
    output: str | Path,
    *,
    training: str = "",
    rare_residues: Rare | None = None,
    metrics: Mapping[str, float] | None = None,
    files: Mapping[str, bytes] = {},
) -> Path:
    """Writes config.json, model.safetensors, the tokenizer's files and README.md (a model card).

    A joint family (ELECTRA) is written as one such folder for each of its parts. The folder appears
    when it is complete; an earlier export in its place is replaced then.

    Args:
        loaded: what `load_model` gave.
        output: the folder to write.
        training: a paragraph for the model card on what the model was trained on.
        rare_residues: what the tokenizer makes of U, Z, O and B: "X", or their own tokens ("keep");
            None: what was done in the model's training, or by the tokenizer it came with.
        metrics: measured numbers for the model card, by what they measure.
        files: further files by name, as the head of a fine-tuned run.

    Returns:
        The folder.

    Raises:
        ProtlmError: the folder holds something else, the model cannot be expressed, the tokenizer
            would have to refuse residues, or the disk is full.
    """
    loaded.require_whole("it cannot be exported")
    rare_residues = rare_residues or loaded.rare_residues
    if rare_residues == "error":
        raise ProtlmError(
            "a tokenizer of transformers cannot refuse a residue: choose --rare_residues x or keep"
        )
    parts = {name: _folded(part) for name, part in parts_of(loaded).items()}
    for part in parts.values():
        _require_expressible(part)
    target = Path(os.path.abspath(output))
    _require_ours(target)
    with written_whole(target, replace=True) as folder:
        for name, content in files.items():
            (folder / name).write_bytes(content)
        for name, part in parts.items():
            (folder / name).mkdir(exist_ok=True)
            _write(part, folder / name, rare_residues)
            title = f"{target.name}/{name}".rstrip("/")
            card = _model_card(part, title, training, rare_residues, metrics or {})
            (folder / name / "README.md").write_text(card)
    return target


def _write(loaded: LoadedModel, folder: Path, rare_residues: Literal["X", "keep"]) -> None:
    config = loaded.config
    exchange = EXCHANGES[config.family]
    fields = {
        "architectures": [exchange.architecture],
        "model_type": exchange.model_type,
        "dtype": "float32",
        MARK: __version__,
        **exchange.to_config(config),
    }
    (folder / "config.json").write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n")
    state = dict(tensors(exchange, loaded.params))
    for name, compute in exchange.constants.items():
        state[name] = np.ascontiguousarray(compute(config), np.float32)
    save_file(state, folder / SINGLE, metadata={"format": "pt"})
    (folder / SINGLE).chmod(0o666 & ~umask())  # safetensors makes it readable to its owner alone
    for name, text in exchange.written_files(config).items():
        (folder / name).write_text(text)
    types = exchange.closing_type if config.type_vocab_size else None
    lengths = [length for length in (loaded.row, config.max_positions) if length]
    longest = min(lengths, default=0)
    as_esm = _as_esm(loaded, rare_residues)
    write_tokenizer(loaded.vocabulary, folder, rare_residues, longest, types, as_esm)


def _as_esm(loaded: LoadedModel, rare_residues: str) -> bool:
    """Whether `EsmTokenizer`, which keeps rare residues, gives our ids in this family."""
    possible = EXCHANGES[loaded.config.family].esm_tokenizer and rare_residues == "keep"
    return possible and fits_esm(loaded.vocabulary)


def _model_card(
    loaded: LoadedModel, title: str, training: str, rare_residues: str, metrics: Mapping[str, float]
) -> str:
    config = loaded.config
    exchange = EXCHANGES[config.family]
    depth = f"{config.num_layers} layers"
    if config.num_decoder_layers:
        depth = f"{config.num_layers} encoder and {config.num_decoder_layers} decoder layers"
    reads = "lower case as upper case" + (" and U, Z, O and B as X" if rare_residues == "X" else "")
    if as_esm := _as_esm(loaded, rare_residues):
        reads = "upper case alone, and U, Z, O and B as tokens of their own"
    opened = exchange.model_type == "t5" or (exchange.model_type == "esm" and as_esm)
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
        usage=exchange.card_code(title),
        trust=", trust_remote_code=True" if exchange.trust else "",
        first=len(loaded.vocabulary.prefix_ids),
        reads=reads,
        tools="" if opened else _NOT_OPENED,
        unknown=loaded.vocabulary.tokens[loaded.vocabulary.unk_id],
    )


def _folded(loaded: LoadedModel) -> LoadedModel:
    """The model with what its class cannot say folded into the parameters, as far as it can be."""
    exchange = EXCHANGES[loaded.config.family]
    plain = folded(loaded)
    theirs = exchange.from_config(exchange.to_config(plain.config)).residual_divisor
    return folded(loaded, theirs)


def _require_expressible(loaded: LoadedModel) -> None:
    config = loaded.config
    if lost := inexpressible(config):
        values = ", ".join(f"model.{field} = {getattr(config, field)!r}" for field in lost)
        raise ProtlmError(
            f"{loaded.name} cannot be exported: Hugging Face's "
            f"{EXCHANGES[config.family].architecture} has no way to say {values}"
        )
    if config.vocab_size < loaded.vocabulary.size:
        raise ProtlmError(
            f"{loaded.name} cannot be exported: model.vocab_size is {config.vocab_size}, "
            f"{loaded.vocabulary.name} has {loaded.vocabulary.size} tokens"
        )


def _require_ours(target: Path) -> None:
    """Nothing is replaced but an earlier export, or the folder of its parts."""

    def is_export(folder: Path) -> bool:
        try:
            return MARK in read_json(folder / "config.json")
        except ProtlmError:
            return False

    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    parts = list(target.iterdir()) if target.is_dir() else []
    if not is_export(target) and not all(map(is_export, parts or [target])):
        raise ProtlmError(
            f"{target} is not empty and was not made by protlm export; choose another"
        )
