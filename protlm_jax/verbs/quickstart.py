"""All stages in ten minutes: train, evaluate, probe, measure depth, export, report.

Every stage is the function behind a verb of the command line and writes its result to disk; a
second call continues where the first one stopped.
"""

from __future__ import annotations

import os
import platform
import shutil
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

from protlm_jax import __version__, report
from protlm_jax.config.files import load_config
from protlm_jax.data.config import DataConfig
from protlm_jax.data.splits import heldout_records
from protlm_jax.evaluation import probe_data, verbs
from protlm_jax.evaluation.depth.analyse import analyse
from protlm_jax.evaluation.depth.files import text
from protlm_jax.evaluation.depth.results import combined, separate
from protlm_jax.evaluation.probes import results as probe_results
from protlm_jax.evaluation.probes import run as run_probe
from protlm_jax.evaluation.results import read, save
from protlm_jax.huggingface import export, load_model, provenance
from protlm_jax.huggingface.verify import short_proteins, verify
from protlm_jax.models.loaded import LoadedModel
from protlm_jax.storage.owner import owned
from protlm_jax.storage.parts import FILES, finish, finished
from protlm_jax.training.loop import train
from protlm_jax.training.metrics import read_metrics

PROBE_PROTEINS = 1200
PROBE_VIEWS = ("cb513", "ts115", "casp12")
DEPTH_PROTEINS = 64


def quickstart(variant: str, output: Path) -> Path:
    """Pretrains a small model on real proteins, measures it, and returns the report's path.

    Args:
        variant: "bert" or "t5", of configs/tiny.py.
        output: folder of run/, huggingface/, results/ and report.html.

    Raises:
        ProtlmError: from any stage; the results of earlier stages stay.
    """
    with owned(output, inside=True):
        return _all_stages(variant, output)


def _all_stages(variant: str, output: Path) -> Path:
    began = time.perf_counter()
    config = load_config(f"tiny:{variant}", [])
    _a_device_for_each_core(config.train.batch_size)
    run, results = output / "run", output / "results"
    page = output / "report.html"
    _say(f"1/6 pretraining a small {variant} on the bundled proteins, in {run}")
    if train(config, run):
        shutil.rmtree(results, ignore_errors=True)  # of an earlier, shorter training
        page.unlink(missing_ok=True)
    elif page.exists():
        print(f"nothing to do: {page} is complete; delete {output} to start anew")
        return page
    loaded = load_model(run)
    data, folder = config.data, output / "huggingface"
    stages: dict[str, tuple[str, Callable[[], dict[str, Any]]]] = {
        "heldout": ("scoring held-out proteins", lambda: verbs.evaluate(loaded, data)),
        "probe": ("predicting secondary structure from the frozen embeddings",
                  lambda: _probed(loaded, data)),
        "depth": ("measuring what each layer contributes",
                  lambda: _layers(loaded, data)),
        "export": ("exporting to Hugging Face format and loading it back",
                   lambda: _exported(loaded, run, folder, data)),
    }  # fmt: skip
    collected: dict[str, Any] = {}
    for number, (name, (what, stage)) in enumerate(stages.items(), start=2):
        _say(f"{number}/6 {what}")
        collected[name] = _kept(results / f"{name}.json", stage)
        print(collected[name]["summary"], flush=True)
    _say("6/6 writing the report")
    collected["training"] = read_metrics(run / "metrics.jsonl")
    seconds = {"training": _training_seconds(collected["training"])}
    seconds |= {name: round(collected[name]["seconds"], 1) for name in stages}
    collected["run"] = _about(variant, config.to_dict(), seconds)
    collected["depth"] = separate(collected["depth"]["dataset"])
    report.write(page, collected)
    print(f"done in {time.perf_counter() - began:.0f} s: open {page}")
    return page


def _probed(loaded: LoadedModel, data: DataConfig) -> dict[str, Any]:
    """Secondary structure from the last layer, one seed, on the paper's test sets."""
    probed = run_probe.run(
        loaded,
        probe_data.load("secondary_structure"),
        train_proteins=PROBE_PROTEINS,
        views=PROBE_VIEWS,
        seeds=1,
        window=verbs.trained_length(loaded, data) - loaded.vocabulary.num_specials,
        seed=verbs.SEED,
        progress=True,
    )
    return {"dataset": probed.result, "summary": probe_results.summary(probed.result)}


def _layers(loaded: LoadedModel, data: DataConfig) -> dict[str, Any]:
    """Depth analysis on some held-out proteins."""
    verbs.require_answers(loaded, data)
    sequences, length = verbs.drawn(data, DEPTH_PROTEINS), verbs.trained_length(loaded, data)
    found = analyse(loaded, sequences, length=length, seed=verbs.SEED, progress=True)
    summary = "\n\n".join(map(text, found.values()))
    return {"dataset": combined(found.values()), "summary": summary}


def _exported(loaded: LoadedModel, run: Path, folder: Path, data: DataConfig) -> dict[str, Any]:
    """Exports, and compares logits with transformers on held-out proteins that fit one row."""
    export(loaded, folder, **provenance(run))
    heldout = {record.id: record.sequence for record in heldout_records(data)}
    longest = data.length - loaded.vocabulary.num_specials
    checked = verify(loaded, folder, short_proteins(heldout, longest))
    checked["summary"] = (
        f"{folder}: transformers {checked['transformers']} {checked['architecture']} gives our "
        f"logits to {checked['max_difference']:.1e} of the largest, and our token ids"
    )
    return checked


def _a_device_for_each_core(batch_size: int) -> None:
    """Trains on one JAX device per CPU core, which is a tenth faster than one for all cores."""
    cores = os.cpu_count() or 1
    devices = max(n for n in range(1, cores + 1) if batch_size % n == 0)
    jax.config.update("jax_num_cpu_devices", devices)


def _kept(note: Path, stage: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A stage's result, made now or in an earlier call; its "dataset" is a file beside the note."""
    arrays = note.with_suffix(".nc")
    found = finished(note)
    if found is None:
        began = time.perf_counter()
        result = stage()
        dataset, files = result.pop("dataset", None), []
        if dataset is not None:
            save(dataset, arrays)
            files.append(arrays)
        found = finish(note, files, **result, seconds=time.perf_counter() - began)
    if arrays.name in found[FILES]:
        found["dataset"] = read(arrays)
    return found


def _training_seconds(lines: list[dict[str, Any]]) -> float:
    """Wall time of the steps, as logged, over all calls that the training took."""
    total, last = 0.0, 0
    for line in lines:
        if "loss" in line:
            total += (line["step"] - last) * line.get("time/seconds_per_step", 0.0)
            last = line["step"]
    return round(total, 1)


def _about(variant: str, config: dict[str, Any], seconds: dict[str, float]) -> dict[str, Any]:
    """What was run, on which machine, with which versions."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint")
    return {
        "command": f"protlm quickstart {variant}",
        "config": config,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}",
        "versions": {"protlm_jax": __version__, **{name: version(name) for name in packages}},
        "seconds": round(sum(seconds.values()), 1),
        "seconds_by_stage": seconds,
    }


def _say(text: str) -> None:
    print(f"\n[{text}]", flush=True)
