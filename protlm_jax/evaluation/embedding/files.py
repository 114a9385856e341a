"""`protlm embed`: a FASTA file in, the embeddings of its proteins out, in the order of the file.

The file is read three times, and never held: for its lengths and faults, for embedding, and for the
names of what is written. Results go into parts in a work folder beside the output, and from there
into one file at the end, so that memory stays the same however much is written, and a run that was
killed goes on where it stopped. A manifest beside the output says what was done and what was not.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import numpy as np

from protlm_jax.data.fasta import Record, read_every_record
from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation.embedding import formats, memory, summary
from protlm_jax.evaluation.embedding.engine import Engine, for_reading
from protlm_jax.evaluation.embedding.input import Survey, survey_file, together
from protlm_jax.evaluation.embedding.parts import Collector, Failure, Parts, differences
from protlm_jax.evaluation.embedding.sequences import make_engine, resolve_window
from protlm_jax.evaluation.embedding.wanted import Dtype, Wanted
from protlm_jax.evaluation.score_files import Outcome
from protlm_jax.models.loaded import LoadedModel
from protlm_jax.storage.files import write_atomically
from protlm_jax.vocabularies import ResiduePolicy

FORMAT = 1


def embed_file(
    loaded: LoadedModel,
    path: Path,
    output: Path,
    wanted: Wanted,
    *,
    compute: Dtype = "float32",
    window: int | None = None,
    trained: int | None = None,
    tokens_per_batch: int | None = None,
    devices: int | None = None,
    policy: ResiduePolicy = ResiduePolicy(),
    say: Callable[[str], None] = lambda line: None,
    progress: bool = False,
) -> Outcome:
    """Embeds the proteins of a FASTA file; see `embed.embed_sequences` for the arrays.

    Args:
        loaded: the model.
        path: FASTA, plain or compressed.
        output: .h5, .hdf5 or .parquet; see `formats.targets`. Beside it stand its manifest
            (`e.h5.json`) and, until it is whole, a work folder (`e.h5.work`).
        wanted: layers, vectors and dtype.
        compute: dtype in which the model computes.
        window: residues shown at once; None: `trained`, at most what `embed.resolve_window` finds.
        trained: tokens in a row of its training; None where nobody knows.
        tokens_per_batch, devices: as in `embed.embed_sequences`.
        policy: what to do with rare residues and lower case.
        say, progress: takes lines of text before it starts; draw a bar on a terminal.

    Raises:
        ProtlmError: the input as a whole cannot be read, the output not be written, there is too
            little memory or disk, or an earlier run had other settings.
    """
    files = formats.targets(output, wanted)
    loaded = for_reading(loaded, compute)
    limit = _limit(loaded, window, trained, len(wanted.layers))
    survey = survey_file(loaded, path, limit, policy)
    settings = _settings(loaded, wanted, limit, policy, survey.digest)
    manifest = output.with_name(output.name + ".json")
    folder = output.with_name(output.name + ".work")
    if (made := _finished(manifest, files, settings, folder)) is not None:
        shutil.rmtree(folder, ignore_errors=True)  # of a kill after all was done
        return summary.outcome(made, output, again=True)
    sizes = survey.residues[survey.residues > 0]
    engine = make_engine(loaded, wanted, sizes, limit, tokens_per_batch, devices)
    parts = Parts.open(folder, settings, wanted, loaded.config.d_model, len(survey.residues))
    for line in _needs(engine, sizes, folder):
        say(line)
    if done := int(parts.done.sum()):
        say(f"going on: {done:,} proteins are done")
    _fill(engine, path, policy, survey, parts, progress)

    made = _manifest(settings, files, survey, parts, trained)
    _assemble(parts, path, policy, files, made)
    write_atomically(manifest, json.dumps(made, indent=1) + "\n")
    for file in files:
        os.replace(folder / file.name, file)
    parts.remove()
    return summary.outcome(made, output)


def _manifest(
    settings: dict[str, Any],
    files: dict[Path, tuple[str, ...]],
    survey: Survey,
    parts: Parts,
    trained: int | None,
) -> dict[str, Any]:
    """What was done, and what was not; `embed_summary` tells it."""
    failures = sorted([*survey.failures, *parts.failures.values()], key=lambda f: f.record)
    return {
        "format": FORMAT,
        "settings": settings,
        "files": {file.name: list(vectors) for file, vectors in files.items()},
        "proteins": len(survey.residues),
        "embedded": len(survey.residues) - len(failures),
        "residues": int(survey.residues.sum()),
        "trained_tokens": trained,
        "windowed": survey.windowed,
        "failures": [asdict(failure) for failure in failures],
    }


def _limit(loaded: LoadedModel, window: int | None, trained: int | None, layers: int) -> int:
    """Residues that go through the model at once."""
    found = resolve_window(loaded, window, layers)
    if window is None and trained is not None:
        return min(found, trained - loaded.vocabulary.num_specials)
    return found


def _settings(
    loaded: LoadedModel, wanted: Wanted, limit: int, policy: ResiduePolicy, proteins: str
) -> dict[str, Any]:
    """All that decides what the numbers are; what is written under others does not mix."""
    return {
        "model": loaded.name,
        "parameters": fingerprint(loaded),
        "proteins": proteins,
        "layers": list(wanted.layers),
        "of_layers": loaded.config.num_layers,
        "vectors": list(wanted.vectors),
        "dtype": wanted.dtype,
        "compute": loaded.config.dtype,
        "window": limit,
        "rare_residues": policy.rare,
    }


def fingerprint(loaded: LoadedModel) -> str:
    """Tells models apart: architecture, vocabulary, and a sample of every parameter's numbers."""
    plain = loaded.config.replace(dtype="float32", attention_backend="xla")
    architecture = plain.to_dict()
    about = json.dumps([architecture, loaded.vocabulary.to_dict()], sort_keys=True)
    digest = hashlib.blake2b(about.encode(), digest_size=16)
    for key, leaf in jax.tree_util.tree_leaves_with_path(loaded.params):
        sample = np.asarray(leaf).reshape(-1)[:: max(1, leaf.size // 4096)]
        digest.update(jax.tree_util.keystr(key).encode() + np.ascontiguousarray(sample).tobytes())
    return digest.hexdigest()


def _finished(
    manifest: Path, files: dict[Path, tuple[str, ...]], settings: dict[str, Any], folder: Path
) -> dict[str, Any] | None:
    """The manifest of the same work done before; None where nothing was.

    Raises:
        ProtlmError: something else is there.
    """
    there = [file for file in files if file.exists()]
    if not there:
        return None
    made = json.loads(manifest.read_text()) if manifest.exists() else {}
    other = differences(made.get("settings", {}), settings)
    if not other and len(there) == len(files):
        return made
    if not other and folder.exists():  # killed between the renames of several files
        return None
    why = f"with other settings ({'; '.join(other)})" if made else "by something else"
    raise ProtlmError(f"{there[0]} was made {why}: delete it, or choose another output")


def _needs(engine: Engine, sizes: np.ndarray, folder: Path) -> list[str]:
    """What it will take.

    Raises:
        ProtlmError: the disk of the work folder is too full.
    """
    if not len(sizes):
        return []
    loaded, wanted = engine.loaded, engine.wanted
    output = memory.result_bytes(loaded, wanted, len(sizes), int(sizes.sum()))
    free, begun = shutil.disk_usage(folder).free, sum(f.stat().st_size for f in folder.iterdir())
    if free + begun < 2 * output:
        raise ProtlmError(
            f"{folder.parent} has {memory.size(free)} free, and the embeddings take "
            f"{memory.size(output)} and as much again while they are put together: "
            "choose another disk, fewer layers, fp16, or vectors of proteins"
        )
    found = memory.estimate(loaded, wanted, engine.shapes, engine.mesh.size, output, engine.at_once)
    alone = [
        "one protein stands in a row, with padding: attention by relative distance scores all pairs"
    ]
    on_cpu = loaded.config.attention_backend == "chunked"
    return found.lines(free) + (alone if on_cpu and not engine.packs else [])


def _fill(
    engine: Engine,
    path: Path,
    policy: ResiduePolicy,
    survey: Survey,
    parts: Parts,
    progress: bool,
) -> None:
    """Embeds what is in no part yet."""
    from tqdm import tqdm

    collector = Collector(parts)
    total, before = int(survey.residues.sum()), int(survey.residues[parts.done].sum())
    quiet = None if progress else True  # None draws on a terminal only
    with tqdm(
        total=total, initial=before, unit="aa", unit_scale=True, desc="embed", disable=quiet
    ) as bar:
        for places, records in together(path, policy, survey.residues):
            done = {i for i, place in enumerate(places) if parts.done[place]}
            for complete in engine.embed([r.sequence for r in records], done):
                for i, arrays in complete:
                    record, place = records[i], places[i]
                    if reason := _fault(arrays, engine.wanted):
                        collector.fail(Failure(place, record.line, record.id, reason))
                    else:
                        collector.add(place, len(record.sequence), arrays)
                    bar.update(len(record.sequence))
                collector.flush()
        collector.flush(whole=True)


def _fault(arrays: dict[str, np.ndarray], wanted: Wanted) -> str:
    """What is wrong with an embedding; "" where it is a set of finite numbers."""
    if all(np.isfinite(array).all() for array in arrays.values()):
        return ""
    return (
        f"not all of its numbers are finite in {wanted.dtype}: values beyond its range, or a model "
        "that is broken; choose bf16 or fp32"
    )


def _assemble(
    parts: Parts,
    path: Path,
    policy: ResiduePolicy,
    files: dict[Path, tuple[str, ...]],
    made: dict[str, Any],
) -> None:
    """Writes the output files into the work folder, in the order of the input."""
    about = {"made_by": "protlm embed", "settings": json.dumps(made["settings"])}

    def entries(vectors: tuple[str, ...]) -> Iterator[formats.Entry]:
        for place, record in enumerate(read_every_record(path, policy)):
            arrays = {name: parts.read(place, name) for name in vectors}
            if isinstance(record, Record) and all(a is not None for a in arrays.values()):
                yield place, record.id, len(record.sequence), arrays  # type: ignore[misc]

    for file, vectors in files.items():
        formats.write_file(
            parts.folder / file.name, entries(vectors), parts.wanted, parts.width, about
        )
