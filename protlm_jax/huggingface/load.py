"""Loads a model from a run, a checkpoint, a Hugging Face folder, the Hub or T5X's model_dir."""

from __future__ import annotations

import functools
import logging
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from protlm_jax import models
from protlm_jax.config.folders import (
    latest_step,
    newest_run,
    recorded,
    t5x_checkpoint,
    t5x_step,
)
from protlm_jax.data.config import DataConfig
from protlm_jax.errors import ProtlmError
from protlm_jax.huggingface import hub
from protlm_jax.huggingface.convert import EXCHANGES, params_from
from protlm_jax.huggingface.folders import written_whole
from protlm_jax.huggingface.matching import matched
from protlm_jax.huggingface.peft import CONFIG
from protlm_jax.huggingface.placement import Placement, Wanted, mesh_for
from protlm_jax.huggingface.read_peft import base_place, load_adapter
from protlm_jax.huggingface.read_tokenizer import model_max_length, rare_residues, read_vocabulary
from protlm_jax.huggingface.tensor_files import open_tensors
from protlm_jax.huggingface.tuned import base_of, tune_of
from protlm_jax.models import LoadedModel, ModelConfig
from protlm_jax.models.adapters import TASK_HEAD, Tuning
from protlm_jax.models.exchange import Exchange, Joint
from protlm_jax.models.registry import FAMILIES, family_of
from protlm_jax.storage.json_files import read_json, write_json
from protlm_jax.vocabularies import Vocabulary, get_vocabulary
from protlm_jax.vocabularies.files import find_vocabulary, write_vocabulary

if TYPE_CHECKING:
    from protlm_jax.training.initial import Source

log = logging.getLogger(__name__)


def load_model(path: str | Path, mesh: Wanted = "auto") -> LoadedModel:
    """Loads a model with its parameters and its vocabulary.

    Args:
        path: a run's folder (its newest checkpoint is taken; of a run made in phases, the last
            phase's), one checkpoint (`<run>/checkpoints/<step>`), a Hugging Face folder, a model's
            id on the Hugging Face Hub (`org/name`), or a model_dir of T5X or one checkpoint in it.
        mesh: how the parameters lie on this process's devices: sizes such as {"data": 2, "fsdp":
            4}; "auto", on one device if it holds them, else divided; None, on one device.

    Raises:
        ProtlmError: the path is none of these, a file or tensor in it is missing or damaged, or the
            mesh does not fit the devices.
    """
    folder, fields = _recognised(path)
    if "adapter" in fields:
        return load_adapter(folder, functools.partial(load_model, mesh=mesh))
    if "model_type" in fields:
        return _load_hugging_face(folder, fields, mesh)
    if isinstance(fields.get("joint"), Joint):
        return _load_joint(folder, fields["joint"], mesh)
    if "t5x" in fields:
        from protlm_jax.t5x_bridge.reading import read_model

        name = f"{folder.parent.name}, T5X step {t5x_step(folder)}"
        config, params = read_model(folder)
        return _loaded(config, params, name, mesh_for(models.build(config), mesh))
    return _load_checkpoint(_checkpoint(folder), mesh)


def find_checkpoint(path: str | Path) -> Path | None:
    """The checkpoint of ours that `load_model` would read; None for what others wrote."""
    folder, fields = _recognised(path)
    return (
        None if fields.keys() & {"adapter", "model_type", "joint", "t5x"} else _checkpoint(folder)
    )


def load_source(path: str | Path) -> Source:
    """`load_model`'s model, with the checkpoint that it was read from."""
    from protlm_jax.training.initial import Source

    return Source(load_model(path, None), find_checkpoint(path))


def read_architecture(path: str | Path) -> ModelConfig:
    """The architecture of what `load_model` would load, its vocabulary registered.

    Raises:
        ProtlmError: as `load_model`, but the weights are not read.
    """
    folder, fields = _recognised(path)
    if "adapter" in fields:
        return read_architecture(base_place(folder))
    if "model_type" in fields:
        return _hugging_face_config(folder, fields)[1]
    if isinstance(joint := fields.get("joint"), Joint):
        return joint.join_configs({name: read_architecture(folder / name) for name in joint.parts})
    if "t5x" in fields:
        from protlm_jax.t5x_bridge.reading import read_config

        return read_config(folder)
    return _run_config(folder.parents[1] if folder.parent.name == "checkpoints" else folder)


def _recognised(path: str | Path) -> tuple[Path, dict[str, Any]]:
    """The folder of a run, a checkpoint or a Hugging Face model, and the fields of its config.json.

    Instead of these, the parts of a joint family (ELECTRA) come with {"joint": Joint}, a checkpoint
    of T5X's with {"t5x": its step}.
    """
    folder = Path(path)
    try:
        if not folder.is_dir() and hub.is_id(path):
            folder = hub.fetch(str(path))
        found = folder.is_dir()
    except (OSError, ValueError) as error:  # a name too long, or with a NUL
        reason = getattr(error, "strerror", None) or error
        raise ProtlmError(f"{str(path)[:80]}... is no name of a folder: {reason}") from error
    if not found:
        raise ProtlmError(
            f"{path} is not a folder on this machine: name a run's folder, one of its checkpoints, "
            f"a Hugging Face folder, a model_dir of T5X, or a model's id on the Hugging Face Hub "
            f"(org/name)"
        )
    folder = newest_run(folder.resolve())
    if (folder / CONFIG).exists():
        return folder, {"adapter": True}
    if folder.parent.name == "checkpoints" and folder.name.isdigit():
        return folder, {}
    if checkpoint := t5x_checkpoint(folder):
        return checkpoint, {"t5x": t5x_step(checkpoint)}
    if (folder / "config.json").exists():
        fields = read_json(folder / "config.json")
        if "model_type" in fields or "model" in fields:
            return folder, fields
    parts = sorted(file.parent.name for file in folder.glob("*/config.json"))
    for family in FAMILIES.values():
        if isinstance(family.exchange, Joint) and sorted(family.exchange.parts) == parts:
            return folder, {"joint": family.exchange}
    if parts:
        raise ProtlmError(f"{folder} is no model but holds some: choose {' or '.join(parts)}")
    if (folder / "dict.txt").exists():
        raise ProtlmError(f"{folder} is a model of fairseq: convert it first (docs/exports.md)")
    raise ProtlmError(
        f"{folder} is no model: a run's folder has config.json and checkpoints/, a Hugging Face "
        f"folder has config.json with 'model_type' and weights, T5X's model_dir has checkpoint_*/"
    )


def import_model(source: str | Path, output: str | Path) -> Path:
    """Turns a Hugging Face folder or T5X's model_dir into a run's folder with checkpoint 0.

    Raises:
        ProtlmError: `source` is a run of ours or cannot be read, `output` is not empty, or the disk
            is full.
    """
    from protlm_jax.training.checkpoints import Checkpoints

    target = Path(output).absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ProtlmError(f"{target} is not an empty folder: choose another output")
    if find_checkpoint(source) is not None:
        raise ProtlmError(
            f"{source} is not a Hugging Face folder: its config.json has no model_type"
        )
    loaded = load_model(source)
    loaded.require_whole("it cannot become a run")
    content = {
        "model": loaded.config.to_dict(),
        "imported_from": loaded.name,
        "rare_residues": loaded.rare_residues,
        "row": loaded.row,
    }
    with written_whole(target) as folder:
        write_vocabulary(loaded.vocabulary, folder)
        write_json(folder / "config.json", content, indent=2)
        checkpoints = Checkpoints(folder / "checkpoints", every=1, keep=1)
        # One byte for the data iterator's state that a run would have: Orbax refuses to store none.
        checkpoints.save(0, {"params": loaded.params}, b"\0", {"imported_from": loaded.name})
        checkpoints.close()
    return target


def provenance(path: str | Path) -> dict[str, Any]:
    """`export`'s keyword arguments on how a model was trained; {} where nothing is recorded."""
    folder = newest_run(Path(path).resolve())
    if checkpoint := t5x_checkpoint(folder):
        return {"training": f"Trained with T5X for {t5x_step(checkpoint):,} steps."}
    run = recorded(path)
    if run.imported_from:
        return {"training": f"Imported from a Hugging Face folder named {run.imported_from}."}
    if "train" not in run.fields:
        return {}
    step = _checkpoint(folder).name
    train, objective, optimizer = (run.section(s) for s in ("train", "objective", "optimizer"))
    data = run.data or DataConfig()
    proteins = Path(data.fasta or data.prepared or "the bundled Swiss-Prot sample").name
    training = (
        f"Trained on {proteins} for {step} steps of {train.get('batch_size')} rows of "
        f"{data.length} tokens, objective `{objective.get('name')}`, optimizer "
        f"{optimizer.get('name')}, seed {train.get('seed')}."
    )
    if start := run.fields.get("init_from"):
        training += f" It started from {Path(str(start)).name}."
    return {"training": training}


def _checkpoint(folder: Path) -> Path:
    """A checkpoint as given, or the newest one of a run."""
    if folder.parent.name == "checkpoints":
        return folder
    step = latest_step(folder / "checkpoints")
    if step is None:
        raise ProtlmError(f"{folder} has no complete checkpoint yet: let the run go on for a while")
    return folder / "checkpoints" / str(step)


def _run_config(run: Path) -> ModelConfig:
    file = run / "config.json"
    fields = read_json(file)
    if not isinstance(fields.get("model"), dict):
        raise ProtlmError(f"{file} describes no model: restore the config.json of this run")
    try:
        config = ModelConfig.from_dict(fields["model"])
        family_of(config)
    except ProtlmError as error:
        raise ProtlmError(f"{file}: {error}") from error
    find_vocabulary(config.vocabulary, run)
    return config


def _load_checkpoint(checkpoint: Path, wanted: Wanted) -> LoadedModel:
    from protlm_jax.training.checkpoints import restore_params

    run = checkpoint.parents[1]
    file = run / "config.json"
    config, about = _run_config(run), recorded(checkpoint)
    model = models.build(config)
    mesh = mesh_for(model, wanted)
    name, tune = f"{run.name}, step {checkpoint.name}", tune_of(about)
    whole = tune.method == "all"
    trained = restore_params(checkpoint, Placement(model, mesh).shardings if whole else None)
    trained.pop(TASK_HEAD, None)
    if whole:
        _require_shapes(trained, models.abstract_params(model), checkpoint, file)
        loaded = _loaded(config, trained, name, mesh)
    else:
        base = base_of(about, checkpoint, functools.partial(load_model, mesh=wanted))
        tuning = Tuning(tune, base.model)
        frozen, like = tuning.split(base.params, jax.random.key(0))
        _require_shapes(trained, like, checkpoint, file)
        params = tuning.merge(frozen, jax.tree.map(jnp.asarray, trained))
        loaded = _loaded(config, params, name, mesh, base.left, base.missing)
    row = about.row
    if about.data is not None and row is not None:  # of its training; a memory is part of a row
        row += config.memory_length
        row = min(row, config.max_positions or row)
    return replace(loaded, rare_residues=about.rare_residues, row=row)


def _hugging_face_config(
    folder: Path, fields: dict[str, Any]
) -> tuple[Exchange, ModelConfig, Vocabulary, int | None]:
    """Family, architecture, vocabulary, and tokens in a row where config.json has them."""
    exchange = _exchange_for(folder, fields)
    try:
        config, row = exchange.from_config(fields), exchange.row_of(fields)
    except (ProtlmError, TypeError, ValueError, ArithmeticError, LookupError) as error:
        known = isinstance(error, ProtlmError)
        reason = error if known else f"a field has a value of the wrong kind ({error!r:.200})"
        raise ProtlmError(f"{folder / 'config.json'}: {reason}") from error
    vocabulary = read_vocabulary(folder, config.position_offset - 1)
    # Tables may have more rows, added to share them out evenly; they are kept and never used.
    if vocabulary.size > config.vocab_size:
        raise ProtlmError(
            f"{folder}: config.json says vocab_size {config.vocab_size}, the tokenizer has "
            f"{vocabulary.size} tokens: they are of different models"
        )
    return exchange, config.replace(vocabulary=vocabulary.name), vocabulary, row


def _load_hugging_face(folder: Path, fields: dict[str, Any], wanted: Wanted) -> LoadedModel:
    exchange, config, vocabulary, row = _hugging_face_config(folder, fields)
    model = models.build(config)
    abstract, mesh = models.abstract_params(model), mesh_for(model, wanted)
    tied = fields.get("tie_word_embeddings") is not False
    with ExitStack() as stack:
        tensors = open_tensors(folder, stack)
        found = matched(folder, exchange, config, abstract, tensors, tied)
        params = params_from(
            exchange, abstract, lambda name: found.tensors[name].read(), Placement(model, mesh)
        )
    loaded = _loaded(config, params, hub.title(folder), mesh, found.left, found.missing)
    lengths = [length for length in (model_max_length(folder), row) if length]
    rare = rare_residues(folder, exchange, vocabulary)
    return replace(loaded, rare_residues=rare, row=min(lengths, default=None))


def _load_joint(folder: Path, joint: Joint, wanted: Wanted) -> LoadedModel:
    parts = {name: load_model(folder / name, wanted) for name in joint.parts}
    for part in parts.values():
        part.require_whole("generator and discriminator are no joint model")
    try:
        config = joint.join_configs({name: part.config for name, part in parts.items()})
        params = joint.join_params({name: part.params for name, part in parts.items()})
    except ProtlmError as error:
        raise ProtlmError(f"{folder}: {error}") from error
    left = tuple(f"{name}: {line}" for name, part in parts.items() for line in part.left)
    first = next(iter(parts.values()))
    loaded = _loaded(config, params, folder.name, first.mesh, left)
    return replace(loaded, rare_residues=first.rare_residues, row=first.row)


def _exchange_for(folder: Path, fields: dict[str, Any]) -> Exchange:
    file = folder / "config.json"
    known = [e for e in EXCHANGES.values() if e.model_type == fields["model_type"]]
    if not known:
        types = sorted({exchange.model_type for exchange in EXCHANGES.values()})
        raise ProtlmError(
            f"{file}: model_type {fields['model_type']!r} cannot be read; only "
            f"{', '.join(types)} can"
        )
    if marked := [exchange for exchange in known if exchange.mark in fields]:
        return marked[0]
    known = [exchange for exchange in known if not exchange.mark]
    named = fields.get("architectures") or []
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        raise ProtlmError(f"{file}: architectures is {named!r:.60}; it must be a list of names")
    known = [e for e in known if {e.architecture, *e.also} & set(named)] or [
        exchange for exchange in known if not exchange.only_named
    ]
    if len(known) != 1:
        classes = [e.architecture for e in EXCHANGES.values()]
        raise ProtlmError(
            f"{file}: architectures {named!r} cannot be read; only {', '.join(sorted(classes))} can"
        )
    return known[0]


def _require_shapes(params: Any, abstract: Any, checkpoint: Path, file: Path) -> None:
    def shapes(tree: Any) -> dict[str, tuple[int, ...]]:
        flat = jax.tree_util.tree_flatten_with_path(tree)[0]
        return {jax.tree_util.keystr(p, simple=True, separator="/"): x.shape for p, x in flat}

    there, asked = shapes(params), shapes(abstract)
    for name in sorted(there.keys() | asked.keys()):
        if there.get(name) != asked.get(name):
            raise ProtlmError(
                f"{checkpoint}: parameter {name} has shape {there.get(name, 'none (missing)')}, "
                f"{file} asks for {asked.get(name, 'none (no such parameter)')}: they are of "
                f"different runs"
            )


def _loaded(
    config: ModelConfig,
    params: Any,
    name: str,
    mesh: Mesh | None = None,
    left: tuple[str, ...] = (),
    missing: tuple[str, ...] = (),
) -> LoadedModel:
    model, vocabulary = models.build(config, missing), get_vocabulary(config.vocabulary)
    placed = Placement(model, mesh).place(params)
    return LoadedModel(model, placed, vocabulary, name, left, missing, mesh=mesh)
