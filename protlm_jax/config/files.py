"""From `--config tiny:bert --config.train.steps=100` to a RunConfig.

A config file defines `get_config(variant) -> ml_collections.ConfigDict`, and may list its variants
in `VARIANTS`. Files of the package are found by name, from any folder.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import os
import runpy
import traceback
import typing
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_collections

from protlm_jax import __version__
from protlm_jax.config.run import (
    SECTIONS,
    RunConfig,
    UnknownField,
    objectives_of,
    refuse_unknown,
    require_sections,
)
from protlm_jax.errors import ProtlmError
from protlm_jax.models.config import ModelConfig
from protlm_jax.objectives import objective_class
from protlm_jax.partitioning import MESH_AXES
from protlm_jax.storage.json_files import read_json
from protlm_jax.storage.typed import LONGEST, shown, typed
from protlm_jax.vocabularies.files import FILE as VOCABULARY_FILE
from protlm_jax.vocabularies.files import find_vocabulary


@dataclasses.dataclass(frozen=True)
class Required:
    """A value in a config file that only the user can give: `what` it is, for the message.

    `instead` names a field of the same section that may be given in its place, and `short` the
    value in a list of configs.
    """

    what: str
    instead: str = ""
    short: str = ""


ArchitectureOf = Callable[[str | Path], ModelConfig]
"""From the folder or the name of a model to its architecture."""

CONFIGS = Path(__file__).parents[1] / "configs"  # in a clone, a link to the folder at its top

_DEEPEST = 20  # levels of a config; phases in a recipe have five


def load_config(
    spec: str,
    overrides: list[str],
    workdir: Path | None = None,
    architecture_of: ArchitectureOf | None = None,
) -> RunConfig:
    """Reads a config file, as path or path:variant, and applies overrides such as
    "train.steps=100".

    Values are Python literals, or plain strings; "mesh=auto" replaces the sizes of a mesh. A run
    that is resumed in `workdir` reads there, and not in `init_from`, what it took from that model.
    With `init_from`, `architecture_of` is `protlm_jax.huggingface.read_architecture`. Raises a
    ProtlmError for a file, variant or field that does not exist, or a missing value that only the
    user can give.
    """
    tree = read_tree(spec)
    for override in overrides:
        apply_override(tree, override)
    return resolve(tree, spec, workdir, architecture_of)


def read_tree(spec: str) -> dict[str, Any]:
    """What a config file returns, as nested dicts; fields are not checked yet.

    The file is Python, and is run: use files that you trust. Raises a ProtlmError where the file or
    variant does not exist, fails, or returns something else.
    """
    path, _, variant = spec.partition(":")
    file = _find(path)
    try:
        namespace = runpy.run_path(str(file))
        if "get_config" not in namespace:
            raise ProtlmError("defines no get_config(variant): see configs/tiny.py")
        variants = tuple(namespace.get("VARIANTS", ()))
        if variant and variants and variant not in variants:
            raise ProtlmError(f"has the variants {', '.join(variants)}, not {variant!r}")
        config = namespace["get_config"](*([variant] if variant else []))
        if not isinstance(config, ml_collections.ConfigDict):
            raise ProtlmError("get_config must return an ml_collections.ConfigDict")
        tree = dict(config.to_dict())
        _require_shallow(tree)
    except (Exception, SystemExit) as error:
        raise _located(file, spec, error) from error
    require_sections(tree)
    return tree


def read_config(workdir: Path) -> RunConfig:
    """The resolved config of a run; raises a ProtlmError where there is none that can be read."""
    file = workdir / "config.json"
    if not file.exists():
        raise ProtlmError(f"{file} does not exist: not a run folder?")
    tree = read_json(file, remedy="restore it from a copy, or start in a new folder")
    try:
        if (workdir / VOCABULARY_FILE).exists():  # of a model that was downloaded
            require_sections(tree)
            find_vocabulary(str(tree.get("model", {}).get("vocabulary")), workdir)
        return RunConfig.from_dict(tree)
    except UnknownField as error:
        raise ProtlmError(
            f"{file} was written by a newer version of protlm_jax than this {__version__} (field "
            f"{error.name}): update protlm_jax; if the file was edited, take the field out"
        ) from error
    except ProtlmError as error:
        raise ProtlmError(f"{file}: {error}") from error


def _require_shallow(tree: dict[str, Any]) -> None:
    level: list[Any] = [tree]
    for _ in range(_DEEPEST):
        inside = (v.values() if isinstance(v, dict) else v for v in level)
        level = [x for some in inside for x in some if isinstance(x, dict | list | tuple)]
        if not level:
            return
    raise ProtlmError(f"values are nested more than {_DEEPEST} levels deep")


def _located(file: Path, spec: str, error: BaseException) -> ProtlmError:
    """What a config file raised, in one line, with the line of the file where it arose."""
    if isinstance(error, SyntaxError) and error.filename == str(file):
        reason, line = error.msg, error.lineno
    else:
        reason, line = str(error), None
        for frame in traceback.extract_tb(error.__traceback__):
            line = frame.lineno if frame.filename == str(file) else line
    if not isinstance(error, ValueError | TypeError | ProtlmError):  # e.g. of a wrong variant
        reason = f"{type(error).__name__}: {reason}"
    place = str(file) if line is None else f"{file}, line {line}"
    return ProtlmError(f"--config {shown(spec)[1:-1]}: {' '.join(reason.split())} ({place})")


def resolve(
    tree: dict[str, Any],
    spec: str,
    workdir: Path | None = None,
    architecture_of: ArchitectureOf | None = None,
) -> RunConfig:
    """Checks and types a config, after completing what it takes from `init_from`."""
    require_given(tree, spec)
    return RunConfig.from_dict(completed(tree, workdir, architecture_of))


def require_given(
    tree: dict[str, Any], spec: str, own: Mapping[str, Any] = {}, prefix: str = ""
) -> None:
    """Removes required fields whose alternative was given; raises a ProtlmError that names the
    override of another one, with a prefix for the sections and fields of `own`.
    """
    for name, value in tree.items():
        fields = value if isinstance(value, dict) else {"": value}
        for field, content in list(fields.items()):
            if not isinstance(content, Required):
                continue
            if content.instead and fields.get(content.instead) is not None:
                del fields[field]
                continue
            of_phase = name in own and (not field or field in own[name])
            place = f"{prefix}{name}" if of_phase else name
            full = f"{place}.{field}".rstrip(".")
            other = f" (or --config.{place}.{content.instead}=...)" if content.instead else ""
            raise ProtlmError(f"{spec} needs --config.{full}=...: {content.what}{other}")


def completed(
    tree: dict[str, Any], workdir: Path | None, architecture_of: ArchitectureOf | None
) -> dict[str, Any]:
    """Fills in what a config takes from the model that the run starts from.

    These are the fields of `model` that are not given and, where there is no objective, the
    objective and its data task.
    """
    init_from = typed(tree.get("init_from"), str | None, "config.init_from")
    if not init_from:
        return tree
    if architecture_of is None:
        raise ProtlmError(
            f"config.init_from is {shown(init_from)}: reading it needs "
            f"architecture_of=protlm_jax.huggingface.read_architecture"
        )
    begun = workdir is not None and (workdir / "metrics.jsonl").exists()
    source = architecture_of(workdir if workdir is not None and begun else init_from)
    model = {**source.to_dict(), **tree.get("model", {})}
    if "objective" in tree:
        return {**tree, "model": model}
    name = objectives_of(source)[0]
    data = {"task": objective_class(name).tasks[0], **tree.get("data", {})}
    return {**tree, "model": model, "objective": {"name": name}, "data": data}


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Sets one field of a nested dict from "section.field=value", or from "init_from=value"."""
    name, equals, text = override.partition("=")
    option = f"--config.{shown(name)[1:-1]}"
    if len(override) > LONGEST:
        raise ProtlmError(
            f"{option} has {len(override):,} characters; at most {LONGEST:,} are read"
        )
    if not equals:
        raise ProtlmError(f"{option} needs a value: {option}=VALUE")
    *sections, field = name.split(".")
    types_of = typing.get_type_hints(RunConfig)
    first = sections[0] if sections else field
    refuse_unknown({first: None}, types_of, prefix="")
    if override == "mesh=auto":  # in place of what the config file gives
        given = {f: v for f, v in tree.get("mesh", {}).items() if f not in MESH_AXES}
        tree["mesh"] = {**given, "auto": True}
        return
    if len(sections) != (first in SECTIONS):
        raise ProtlmError(f"{option}: overrides are --config.SECTION.FIELD=VALUE")
    if sections and first != "objective":  # its fields depend on its name, and are checked with it
        fields = typing.get_type_hints(types_of[first])
        refuse_unknown({field: None}, fields, prefix=f"{first}.")
    (tree.setdefault(first, {}) if sections else tree)[field] = _value(option, text)


def _value(option: str, text: str) -> Any:
    """A Python literal, or else the text itself."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the parser warns of text that is no Python
            return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError):  # TypeError: of {[]: 1}
        return text
    except (RecursionError, MemoryError) as error:
        raise ProtlmError(f"{option}={text[:40]}... is nested too deeply") from error


def config_names() -> list[str]:
    """Names of the package's own config files, sorted."""
    return sorted(file.stem for file in CONFIGS.glob("*.py"))


def _find(path: str) -> Path:
    """The file as given, or the package's own one of that name: "tiny" or "configs/tiny.py"."""
    folder, name = os.path.split(path)
    own = [CONFIGS / f"{name.removesuffix('.py')}.py"] if folder in ("", "configs") else []
    candidates = [Path(path), *own] if path.endswith(".py") else [*own, Path(path)]
    for candidate in candidates:
        if os.path.isfile(candidate):
            return candidate
    if path and os.path.exists(path):
        raise ProtlmError(f"{path} is not an ordinary file; for example --config tiny:bert")
    near = difflib.get_close_matches(
        name[:100].removesuffix(".py"), config_names(), n=3, cutoff=0.5
    )
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise ProtlmError(
        f"config file {shown(path)[1:-1]} does not exist; {hint}`protlm configs` lists all"
    )
