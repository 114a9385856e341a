"""The verb `protlm finetune`: trains a model on labelled proteins and scores its tests once."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Sequence
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protlm_jax.errors import ProtlmError
from protlm_jax.verbs.arguments import add_window, positive

if TYPE_CHECKING:
    import numpy as np

    from protlm_jax.evaluation.probe_data import Benchmark, LabelledProtein, Target
    from protlm_jax.evaluation.tuned import Predicted, TunedModel
    from protlm_jax.models.loaded import LoadedModel

BASELINES = ("probe", "random", "one_hot")
_LONGEST_ROW = 1024  # tokens, as Schmirler et al. 2024; longer proteins are cut
_SEED = 0

EPILOG = """\
typical use:
  protlm finetune --model hf/esm2 --input mine.csv --workdir runs/mine
  protlm finetune --model hf/esm2 --benchmark localization --workdir runs/where \\
      --baselines probe,random
  protlm finetune --config finetune:full --model hf/esm2 --benchmark gb1_two_vs_rest \\
      --workdir runs/gb1 --config.train.steps=3000

--config names what is trained (finetune:lora, full, last, head, schmirler, schmirler_full; see
configs/finetune.py), and any field can be overridden. Labels are read as by `protlm probe`.
Validation proteins choose the step, and stop the training early; the tests are scored once.
The same command again goes on where it stopped.

WORKDIR is a run: --model takes it in every verb, with adapters merged; `protlm predict --model
WORKDIR` applies its head, and `protlm export` writes it for PEFT and transformers. It also gets
scores.csv. A residue-level protein longer than a row is read in pieces; of a longer protein with a
label of the whole, the middle is left out.
"""


def add_arguments(verb: argparse.ArgumentParser, model_help: str) -> None:
    """Gives the verb its arguments; those on labels are `protlm probe`'s."""
    from protlm_jax.evaluation.probes.verb import add_labels

    verb.formatter_class = argparse.RawDescriptionHelpFormatter
    verb.epilog = EPILOG
    verb.add_argument("--model", required=True, help=model_help)
    verb.add_argument("--workdir", required=True, type=Path, help="folder of the run")
    verb.add_argument("--config", default="finetune:lora", help="default: finetune:lora")
    add_labels(verb)
    verb.add_argument(
        "--train_proteins", type=positive, metavar="N", help="draw so many to learn from"
    )
    verb.add_argument("--test_proteins", type=positive, metavar="N", help="draw so many of a test")
    add_window(verb)
    verb.add_argument(
        "--class_weights", action="store_true", help="weight classes by one over their frequency"
    )
    verb.add_argument(
        "--baselines", type=lambda text: text.split(","), default=[], metavar="A,B",
        help="score beside it, with paired differences: probe (a linear head on frozen features), "
        "random (the same training of a re-initialised model), one_hot (a probe without a model)",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> None:
    """Trains, scores the tests and writes the scores, as the only process in the folder."""
    from protlm_jax.huggingface.tuned import TASK
    from protlm_jax.storage.owner import owned

    with owned(arguments.workdir / TASK):  # `train` locks the folder itself
        _run(arguments)


def _run(arguments: argparse.Namespace) -> None:
    from protlm_jax.config.files import load_config
    from protlm_jax.evaluation.probes.verb import benchmark_of
    from protlm_jax.evaluation.tables import Table
    from protlm_jax.huggingface import load_model, load_source, read_architecture
    from protlm_jax.huggingface.tuned import TASK
    from protlm_jax.storage.files import write_atomically
    from protlm_jax.training.loop import train

    if [text for text in arguments.overrides if text.startswith("data.length")]:
        raise ProtlmError("the length of rows follows from --window: leave out data.length")
    if wrong := [name for name in arguments.baselines if name not in BASELINES]:
        raise ProtlmError(f"no baseline {wrong[0]!r}; there is {', '.join(BASELINES)}")
    benchmark = benchmark_of(arguments)
    if benchmark.level == "pair":
        raise ProtlmError(f"{benchmark.title} are pairs of residues: see protlm probe")
    base = load_model(arguments.model)
    benchmark = _with_tests(benchmark, arguments.test_proteins)
    splits = _splits(benchmark, arguments.train_proteins)
    workdir = arguments.workdir
    overrides = _write_task(base, benchmark, splits, workdir, arguments)

    def tuned(model: str, folder: Path) -> TunedModel:
        own = [f"init_from={model}", *overrides, *arguments.overrides]
        config = load_config(arguments.config, own, folder, read_architecture)
        made = train(config, folder, load_source)
        if folder != workdir:
            write_atomically(folder / TASK, (workdir / TASK).read_text())
        print(f"{folder}: {made} steps" if made else f"{folder}: trained already", flush=True)
        return load_tuned(str(folder))

    found = {"fine-tuned": _decided(tuned(arguments.model, workdir), benchmark)}
    for name in arguments.baselines:
        print(f"baseline: {name}", flush=True)
        if name == "random":
            control = _random(base, workdir)
            found[name] = _decided(tuned(str(control), workdir / "random"), benchmark)
        else:
            kind = "model" if name == "probe" else name
            found[name] = _probed(kind, base, benchmark, splits)
    table = Table.of(_rows(benchmark, found))
    table.csv(workdir / "scores.csv")
    print(table.text())
    print(f"wrote {workdir}: scores.csv")


def load_tuned(folder: str, load: Callable[[str], LoadedModel] | None = None) -> TunedModel:
    """A fine-tuned run with its head; raises a ProtlmError where it has none."""
    from protlm_jax.evaluation.tuned import TunedModel
    from protlm_jax.huggingface import load_model
    from protlm_jax.huggingface.load import find_checkpoint
    from protlm_jax.huggingface.tuned import load_head

    checkpoint = find_checkpoint(folder)
    if checkpoint is None:
        raise ProtlmError(f"{folder} is no fine-tuned run: name one, or a probe with --probe")
    return TunedModel((load or load_model)(folder), *load_head(checkpoint))


def _with_tests(benchmark: Benchmark, count: int | None) -> Benchmark:
    """The benchmark with so many proteins of each test."""
    from protlm_jax.evaluation.probe_data import subset

    tests = {view.split for view in benchmark.views.values()}
    drawn = {name: subset(benchmark.splits[name](), count, _SEED) for name in sorted(tests)}
    splits = dict(benchmark.splits)
    for name, found in drawn.items():
        splits[name] = partial(list, found)
    return dataclasses.replace(benchmark, splits=splits)


def _splits(benchmark: Benchmark, count: int | None) -> dict[str, list[LabelledProtein]]:
    from protlm_jax.evaluation.probe_data import subset

    splits = {"train": subset(benchmark.splits["train"](), count, _SEED)}
    splits["valid"] = subset(benchmark.splits["valid"](), count and max(200, count // 10), _SEED)
    for split, proteins in splits.items():
        if not proteins:
            raise ProtlmError(f"{benchmark.title}: there is no protein in the split {split!r}")
    return splits


def _write_task(
    base: LoadedModel,
    benchmark: Benchmark,
    splits: dict[str, list[LabelledProtein]],
    workdir: Path,
    arguments: argparse.Namespace,
) -> list[str]:
    """Writes labels.npz and task.json; returns the overrides of the config that they ask for."""
    import numpy as np

    from protlm_jax.data.labelled import write_labels
    from protlm_jax.evaluation.tuned import without_middles
    from protlm_jax.evaluation.verbs import row_of
    from protlm_jax.huggingface.tuned import TASK
    from protlm_jax.storage.json_files import read_json, write_json
    from protlm_jax.storage.parts import differences

    proteins = [*splits["train"], *splits["valid"]]
    specials = base.vocabulary.num_specials
    longest = max(len(p.sequence) for p in proteins) + specials
    most = row_of(base, arguments.window) if arguments.window else min(row_of(base), _LONGEST_ROW)
    row = min(most, -(-longest // 8) * 8)
    whole, targets = benchmark.level == "protein", benchmark.targets
    columns = [_column(target, splits["train"]) for target in targets]
    values = [
        np.stack([_scaled(p, t, c) for t, c in zip(targets, columns, strict=True)], axis=-1)
        for p in proteins
    ]
    sequences = [p.sequence for p in proteins]
    if whole:
        sequences = without_middles(sequences, row - specials)
    heldout = [place >= len(splits["train"]) for place in range(len(proteins))]
    digest = blake2b(repr((sequences, heldout)).encode(), digest_size=16)
    for own in values:
        digest.update(own.tobytes())
    about = {
        "benchmark": benchmark.title,
        "level": benchmark.level,
        "targets": [dataclasses.asdict(target) for target in targets],
        "means": [mean for mean, _, _ in columns],
        "spreads": [spread for _, spread, _ in columns],
        "window": row - specials,
        "train_proteins": len(splits["train"]),
        "model": base.name,
        "labels": digest.hexdigest(),
    }
    about = json.loads(json.dumps(about))
    if (workdir / TASK).exists():
        if other := differences(read_json(workdir / TASK), about):
            raise ProtlmError(
                f"{workdir} holds a model tuned on other labels ({'; '.join(other):.300}): "
                f"choose another --workdir"
            )
    else:
        write_labels(workdir / "labels.npz", sequences, values, heldout)
        write_json(workdir / TASK, about)
    outputs = tuple(len(t.classes) if t.kind == "classes" else 1 for t in targets)
    weights = [weight for _, _, own in columns for weight in own]
    return [
        f"data.labels={(workdir / 'labels.npz').absolute()}",
        "data.task=labels",
        f"data.length={row}",
        f"data.rare_residues={base.rare_residues}",
        f"objective.outputs={outputs!r}",
        f"objective.pool={'mean' if whole else 'residue'}",
        *([f"objective.weights={tuple(weights)!r}"] if arguments.class_weights else []),
    ]


def _column(
    target: Target, proteins: Sequence[LabelledProtein]
) -> tuple[float, float, list[float]]:
    """Mean and spread of a target's numbers in training, and the weights of its outputs."""
    import numpy as np

    from protlm_jax.evaluation.probe_data import known

    labels = np.concatenate([np.ravel(p.labels[target.name]) for p in proteins])
    labels = labels[known(target, labels)]
    if not labels.size or labels.min() == labels.max():
        raise ProtlmError(
            f"all labels of {target.name!r} in training are the same: there is nothing to learn; "
            f"name other columns in --targets, or divide the proteins anew"
        )
    if target.kind == "number":
        return float(labels.mean()), float(labels.std()), [1.0]
    counts = np.bincount(labels.astype(np.int64), minlength=len(target.classes))
    weights = len(labels) / (np.count_nonzero(counts) * np.maximum(counts, 1))
    return 0.0, 1.0, weights.round(6).tolist()


def _scaled(protein: LabelledProtein, target: Target, column: Any) -> np.ndarray:
    """float32 [residues] or []: classes, or standardised numbers; NaN where there is no label."""
    import numpy as np

    from protlm_jax.evaluation.probe_data import known

    labels, (mean, spread, _) = protein.labels[target.name], column
    values = (labels.astype(np.float32) - mean) / spread
    return np.where(known(target, labels), values, np.float32(np.nan)).astype(np.float32)


def _decided(tuned: TunedModel, benchmark: Benchmark) -> dict[str, Predicted]:
    """Predictions of the test splits."""
    tests = dict.fromkeys(view.split for view in benchmark.views.values())
    return {name: tuned.decided(benchmark.splits[name](), progress=True) for name in tests}


def _random(base: LoadedModel, workdir: Path) -> Path:
    """The same architecture with fresh parameters, as a folder."""
    from protlm_jax.evaluation.probes.controls import random_control
    from protlm_jax.evaluation.probes.fit import RANDOM
    from protlm_jax.huggingface import export

    folder = workdir / "random-model"
    if not folder.exists():
        export(random_control(base, _SEED + RANDOM), folder)
    return folder


def _probed(
    kind: str, base: LoadedModel, benchmark: Benchmark, splits: dict[str, list[LabelledProtein]]
) -> dict[str, Predicted]:
    """Predictions of a linear probe of the last layer, or of residues without a model."""
    from protlm_jax.evaluation.embedding.spec import resolve_layers
    from protlm_jax.evaluation.probes.features import memory_budget
    from protlm_jax.evaluation.probes.fit import Settings, fit
    from protlm_jax.evaluation.verbs import window_of

    if kind == "one_hot" and benchmark.level == "protein":
        kind = "composition"
    views = tuple(benchmark.views)
    tests = {benchmark.views[view].split for view in views}
    everything = {**splits, **{name: benchmark.splits[name]() for name in tests}}
    settings = Settings(
        *(benchmark, everything, views, ("linear",), resolve_layers(base, "last")),
        seeds=(_SEED,),
        window=window_of(base),
        compute="float32",
        budget=memory_budget(),
        seed=_SEED,
        progress=True,
        say=print,
    )
    fitted = fit(kind, base, settings)
    return {
        name: {target: found[:, 0] for target, found in of_heads["linear"].items()}
        for name, of_heads in fitted.tests.items()
    }


def _rows(benchmark: Benchmark, found: dict[str, dict[str, Predicted]]) -> list[dict[str, Any]]:
    """Scores of all models on all views, and the paired differences from the baselines."""
    from protlm_jax.evaluation.probes import scores

    rows: list[dict[str, Any]] = []
    for view in benchmark.views.values():
        for target in benchmark.targets:
            of = scores.labelled(benchmark.splits[view.split](), benchmark.level, target, view.mark)
            if of is None:
                continue
            first = {"test": view.title, "target": target.name}
            drawn = {
                name: scores.primary(splits[view.split][target.name], of, target, _SEED)
                for name, splits in found.items()
            }
            for name, splits in found.items():
                predicted = splits[view.split][target.name]
                full = scores.full(predicted, of, target, benchmark.level, _SEED)
                metric = "accuracy" if target.kind == "classes" else "spearman"
                for key, estimate in {metric: full.pop("pooled"), **full}.items():
                    if isinstance(estimate, dict) and "value" in estimate:
                        rows.append({**first, "model": name, "metric": key, **estimate})
                ours, theirs = drawn["fine-tuned"], drawn[name]
                if name != "fine-tuned" and ours is not None and theirs is not None:
                    difference = scores.estimated(ours.minus(theirs)) or {}
                    rows.append(
                        {
                            **first,
                            "model": f"fine-tuned minus {name}",
                            "metric": metric,
                            **difference,
                        }
                    )
    return rows
