"""Writes a run as a PEFT folder, and proves that PEFT reads from it what the run holds."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import save_file

from protlm_jax import models
from protlm_jax.config.folders import recorded
from protlm_jax.errors import ProtlmError
from protlm_jax.huggingface.convert import EXCHANGES
from protlm_jax.huggingface.folders import written_whole
from protlm_jax.huggingface.load import find_checkpoint, load_model
from protlm_jax.huggingface.peft import CONFIG, PREFIX, WEIGHTS, adapter_files
from protlm_jax.huggingface.save import export
from protlm_jax.huggingface.tuned import HEAD, TASK, base_of, head_files, load_head, tune_of
from protlm_jax.models.adapters import ADAPTERS, TuneConfig
from protlm_jax.models.exchange import Exchange
from protlm_jax.models.loaded import LoadedModel
from protlm_jax.storage.files import umask
from protlm_jax.storage.json_files import read_json

TOLERANCE = 1e-4  # of the largest answer

_CARD = """\
---
base_model: {base}
library_name: peft
---

# {title}

A {kind} adapter of {base}, trained with protlm_jax. It was loaded with peft {version}, and gave the
answers of the run to {difference:.0e} of the largest.

```python
from peft import PeftModel
from transformers import {architecture}

model = {architecture}.from_pretrained("{base}"{labels})
model = PeftModel.from_pretrained(model, "{title}").eval()
```
{more}"""


@dataclass(frozen=True)
class _Loads:
    """The class that loads an adapter, and what its tensors' names begin with instead of ours."""

    architecture: str
    task_type: str | None
    prefix: str


def export_adapter(path: str | Path, output: Path) -> str:
    """Writes the adapter of a run, and its head; returns a line on how it was proved.

    `modules_to_save` has the head where a class of transformers computes the same: one linear map
    of each residue to the classes of one target. Any other head is written beside the adapter. The
    base is named where it is a Hugging Face folder, else written as `base` in the folder.

    Raises a ProtlmError where the run has no adapter, PEFT cannot express it, or PEFT and the run
    disagree.
    """
    checkpoint = find_checkpoint(path)
    about = recorded(path)
    if checkpoint is None or (tune := tune_of(about)).method not in ADAPTERS:
        raise ProtlmError(
            f"{path} holds no adapter: export the whole model (--format huggingface), or train "
            f"with tune.method=lora"
        )
    from protlm_jax.training.checkpoints import restore_params

    base = base_of(about, checkpoint, load_model)
    exchange = EXCHANGES.get(base.config.family)
    if exchange is None:
        raise ProtlmError(
            f"{base.name} is several models of transformers: export the whole (--format "
            f"huggingface), or fine-tune one part"
        )
    trained = restore_params(checkpoint)
    head = load_head(checkpoint) if (checkpoint.parents[1] / TASK).exists() else None
    loads = _class_of(exchange, head)
    fields, arrays = _contents(exchange, tune, base, trained, head, loads)
    source = Path(str(about.fields.get("init_from")))
    is_theirs = (source / "config.json").exists() and "model_type" in read_json(
        source / "config.json"
    )
    with written_whole(Path(output).absolute()) as folder:
        place = source.resolve() if is_theirs else folder / "base"
        if not is_theirs:
            export(base, place)
        fields["base_model_name_or_path"] = str(place if is_theirs else Path(output) / "base")
        (folder / CONFIG).write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n")
        save_file(arrays, folder / WEIGHTS, metadata={"format": "pt"})
        (folder / WEIGHTS).chmod(0o666 & ~umask())
        for name, content in head_files(head).items() if head is not None else ():
            (folder / name).write_bytes(content)
        outputs = sum(head[0].outputs) if head is not None else None
        difference, version = _compared(
            load_model(path), head, loads, place, folder, outputs if loads.task_type else None
        )
        labels = f", num_labels={outputs}" if loads.task_type == "TOKEN_CLS" else ""
        more = ""
        if head is not None:
            more = f"\nThe head of the task is in {HEAD}, and {TASK} says what it predicts.\n"
        card = _CARD.format(
            base=fields["base_model_name_or_path"], title=Path(output).name, kind=tune.method,
            version=version, difference=max(difference, 1e-9), architecture=loads.architecture,
            labels=labels, more=more,
        )  # fmt: skip
        (folder / "README.md").write_text(card)
    return f"peft {version} gives the run's answers to {difference:.1e} of the largest"


def files_of(path: str | Path) -> dict[str, bytes]:
    """`head_files` of what `load_model` would read; {} where it has no head."""
    checkpoint = find_checkpoint(path)
    if checkpoint is None or not (checkpoint.parents[1] / TASK).exists():
        return {}
    return head_files(load_head(checkpoint))


def _contents(
    exchange: Exchange, tune: TuneConfig, base: LoadedModel, trained: Any, head: Any, loads: _Loads
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The fields and tensors of an adapter under the names of the class that loads it."""
    shapes = models.abstract_params(models.build(base.config))
    fields, arrays = adapter_files(exchange, tune, shapes, trained)
    arrays = {_renamed(name, exchange, loads): x for name, x in arrays.items()}
    for name in ("target_modules", "feedforward_modules"):
        if fields.get(name):
            fields[name] = _stripped(fields[name], exchange, loads)
    for name in ("rank_pattern", "alpha_pattern"):
        if name in fields:
            patterns = fields[name].items()
            fields[name] = {_stripped(n, exchange, loads): v for n, v in patterns}
    fields |= {"task_type": loads.task_type, "modules_to_save": None}
    if head is not None and loads.task_type == "TOKEN_CLS":
        fields["modules_to_save"] = ["classifier", "score"]
        arrays[f"{PREFIX}classifier.weight"] = np.ascontiguousarray(head[1]["out_kernel"].T)
        arrays[f"{PREFIX}classifier.bias"] = np.asarray(head[1]["out_bias"])
    return fields, arrays


def _class_of(exchange: Exchange, head: Any) -> _Loads:
    """Of the head where a class of theirs has it, else of the body; without a task, of the LM."""
    import transformers

    stem = re.sub(r"(For\w+|LMHeadModel|EncoderModel)$", "", exchange.architecture)
    body = exchange.body
    if head is None:
        return _Loads(exchange.architecture, None, body)
    objective, _, about = head
    linear = objective.pool == "residue" and not objective.dense
    if linear and len(about["targets"]) == 1 and about["targets"][0]["kind"] == "classes":
        name = f"{stem}ForTokenClassification"
        if hasattr(transformers, name):
            return _Loads(name, "TOKEN_CLS", "transformer." if stem == "T5" else body)
    return _Loads("T5EncoderModel" if stem == "T5" else f"{stem}Model", "FEATURE_EXTRACTION", "")


def _renamed(name: str, exchange: Exchange, loads: _Loads) -> str:
    own = name.removeprefix(PREFIX).removeprefix(exchange.body)
    return f"{PREFIX}{loads.prefix}{own}"


def _stripped(pattern: str, exchange: Exchange, loads: _Loads) -> str:
    """A pattern of names of modules with the prefix of the class that loads them."""
    ours, theirs = re.escape(exchange.body), re.escape(loads.prefix)
    return "|".join(theirs + one.removeprefix(ours) for one in pattern.split("|"))


def _compared(
    loaded: LoadedModel,
    head: Any,
    loads: _Loads,
    base: Path,
    folder: Path,
    outputs: int | None,
) -> tuple[float, str]:
    """The largest difference of PEFT's answers from ours, relative to the largest answer."""
    try:
        import peft
        import torch
        import transformers
    except ImportError as error:
        raise ProtlmError(
            f"proving an adapter needs peft, torch and transformers ({error}): "
            f"install requirements/hf.txt, or pip install 'protlm-jax[hf]'"
        ) from error
    architecture = getattr(transformers, loads.architecture)
    more = {"num_labels": outputs} if loads.task_type == "TOKEN_CLS" else {}
    model = architecture.from_pretrained(str(base), **more)
    model = peft.PeftModel.from_pretrained(model, str(folder)).eval()
    ids = np.random.default_rng(0).choice(loaded.vocabulary.amino_acid_ids, (2, 24))
    ids = np.array([loaded.vocabulary.encode("".join(loaded.vocabulary.tokens[i] for i in row))
                    for row in ids])  # fmt: skip
    inputs = {"input_ids": torch.tensor(ids, dtype=torch.long)}
    inputs |= {"attention_mask": torch.ones_like(inputs["input_ids"])}
    if loaded.config.num_decoder_layers and head is None:
        inputs["labels"] = inputs["input_ids"]
    with torch.no_grad():
        out = model(**inputs)
    theirs = (out.logits if hasattr(out, "logits") else out.last_hidden_state).numpy()
    with jax.default_matmul_precision("float32"):
        ours = np.asarray(_answers(loaded, head, loads, ids))
    difference = float(np.abs(ours.reshape(theirs.shape) - theirs).max() / np.abs(theirs).max())
    if not difference <= TOLERANCE:
        raise ProtlmError(
            f"peft {peft.__version__} disagrees with the run (answers differ by {difference:.1e} "
            f"of the largest): please report this, with {folder / CONFIG}"
        )
    return difference, peft.__version__


def _answers(loaded: LoadedModel, head: Any, loads: _Loads, ids: np.ndarray) -> Any:
    """What the class that loads the adapter would compute."""
    from protlm_jax.huggingface.verify import features_of
    from protlm_jax.models.adapters import TASK_HEAD

    model = loaded.with_config(dtype="float32").model
    batch = features_of(loaded, ids, np.ones_like(ids))
    if head is None:
        return model.apply({"params": loaded.params}, batch)
    if loads.task_type != "TOKEN_CLS":
        return model.apply({"params": loaded.params}, batch, method="hidden")
    params = {**loaded.params, TASK_HEAD: head[1]}
    plain = {n.removeprefix("encoder_"): x for n, x in batch.items() if "decoder" not in n}
    return head[0].answers(model, params, plain)[0]
