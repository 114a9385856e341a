"""`protlm embed`: a FASTA file in, the embeddings of its proteins out, in the order of the file.

The file is read three times, and never held: for its lengths and faults, for embedding, and for the
names of what is written. Results go into parts in a work folder beside the output, and from there
into one file at the end, so that memory does not grow with the output, and a run that was killed
continues. A manifest beside the output records settings, failures and digests.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from protlm_jax.data.fasta import Record
from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation.embedding import formats, memory
from protlm_jax.evaluation.embedding.embedder import Embedder, resolve_window
from protlm_jax.evaluation.embedding.input import InputChanged, Survey, again, survey_file, together
from protlm_jax.evaluation.embedding.spec import Dtype, EmbeddingSpec
from protlm_jax.evaluation.engine import for_reading
from protlm_jax.evaluation.finite import first_not_finite, reason
from protlm_jax.evaluation.outcome import Outcome, listed
from protlm_jax.evaluation.parts import Failure, Parts
from protlm_jax.models.identity import identity
from protlm_jax.models.loaded import LoadedModel
from protlm_jax.storage.digests import Damaged, digest_of, verify_entries
from protlm_jax.storage.json_files import read_json, write_json
from protlm_jax.storage.owner import owned
from protlm_jax.storage.parts import differences
from protlm_jax.vocabularies import ResiduePolicy

FORMAT = 2  # of the manifest


def embed_file(
    loaded: LoadedModel,
    path: Path,
    output: Path,
    spec: EmbeddingSpec,
    *,
    compute: Dtype = "float32",
    window: int | None = None,
    trained: int | None = None,
    tokens_per_batch: int | None = None,
    devices: int | None = None,
    policy: ResiduePolicy = ResiduePolicy(),
    keys: formats.Keys = "number",
    say: Callable[[str], None] = lambda line: None,
    progress: bool = False,
) -> Outcome:
    """Embeds the proteins of a FASTA file; see `sequences.embed_sequences` for the arrays.

    Args:
        path: FASTA, plain or compressed.
        output: .h5, .hdf5 or .parquet, see `formats.targets`. Beside it are its manifest
            (`e.h5.json`) and, until it is complete, a work folder (`e.h5.work`).
        compute: dtype in which the model computes.
        window: residues that go through the model at once; None: those of `trained` tokens, a row
            of its training where that is known, at most what `embedder.resolve_window` finds.
        keys: of HDF5's data sets, see `formats.key_of`. Of proteins with the same letters, which
            share a sum, the first is written, and the manifest names the others.
        say: takes lines of text before the work starts.

    Raises:
        ProtlmError: the input as a whole cannot be read, the output cannot be written, there is too
            little memory or disk, or the output or work folder that exists is damaged or was made
            with other settings.
        Occupied: another process is writing the output.
    """
    files = formats.targets(output, spec, keys)
    loaded = for_reading(loaded, compute)
    limit = resolve_window(loaded, window, len(spec.layers))
    if window is None and trained is not None:
        limit = min(limit, trained - loaded.vocabulary.num_specials)
    folder, manifest = (output.with_name(output.name + suffix) for suffix in (".work", ".json"))
    with owned(folder, inside=True):
        survey = survey_file(loaded, path, limit, policy, keys)
        settings = _settings(loaded, spec, limit, survey)
        if (made := _finished(manifest, files, settings)) is not None:
            shutil.rmtree(folder, ignore_errors=True)  # of a kill after the last rename
            return _outcome(made, output, again=True)
        sizes = survey.residues[survey.residues > 0]
        embedder = Embedder(loaded, spec, sizes, limit, tokens_per_batch, devices)
        shape = functools.partial(spec.shape, width=loaded.config.d_model)
        records = len(survey.residues)
        parts = Parts.open(folder, settings, records, spec.vectors, shape, spec.numpy_dtype)
        for line in _needs(embedder, sizes, folder):
            say(line)
        if done := int(parts.done.sum()):
            say(f"going on: {done:,} proteins are done")
        try:
            _fill(embedder, survey, parts, progress)
        except InputChanged:
            parts.remove()  # some may be of other sequences
            raise
        failures = sorted([*survey.failures, *parts.failures.values()], key=lambda f: f.record)
        made = {
            "model": loaded.name,
            "settings": settings,
            "proteins": records,
            "embedded": records - len(failures),
            "residues": int(survey.residues.sum()),
            "trained_tokens": trained,
            "windowed": survey.windowed,
            "failures": [asdict(failure) for failure in failures],
        }
        made["files"] = _assemble(parts, survey, embedder, files, made)
        write_json(manifest, made)
        for file in files:
            os.replace(folder / file.name, file)
        parts.remove()
    return _outcome(made, output)


def _settings(
    loaded: LoadedModel, spec: EmbeddingSpec, limit: int, survey: Survey
) -> dict[str, Any]:
    """All settings that the numbers depend on; results of others are not mixed."""
    return {
        "format": FORMAT,
        "identity": identity(loaded),
        "proteins": survey.digest,
        "layers": list(spec.layers),
        "of_layers": loaded.config.num_layers,
        "vectors": list(spec.vectors),
        "dtype": spec.dtype,
        "compute": loaded.config.dtype,
        "window": limit,
        "rare_residues": survey.policy.rare,
        # Before it said so, a sum was over the residues as they are read.
        "keys": f"{survey.keys} of the letters"
        if survey.keys in formats.OF_LETTERS
        else survey.keys,
    }


def _finished(
    manifest: Path, files: dict[Path, tuple[str, ...]], settings: dict[str, Any]
) -> dict[str, Any] | None:
    """The manifest of the same work done before; None where nothing was written.

    Raises:
        ProtlmError: the files are of other work, or have changed since they were written.
    """
    there = [file for file in files if os.path.lexists(file)]
    if not there:
        return None
    remedy = f"delete {' and '.join(map(str, there))}, or choose another output"
    if not manifest.exists():
        raise ProtlmError(f"{there[0]} was made by something else: {remedy}")
    made = read_json(manifest, remedy=remedy)
    written, before = made.get("files") or {}, made.get("settings") or {}
    if isinstance(before, dict) and before.get("format") != FORMAT:
        raise ProtlmError(
            f"{there[0]} was written by another version of protlm_jax. Its vectors can be read; to "
            f"embed again, {remedy}"
        )
    parts = [written, before, *(written.values() if isinstance(written, dict) else ())]
    if not all(isinstance(part, dict) for part in parts):
        raise ProtlmError(f"{manifest} is damaged: {remedy}")
    if other := differences(before, settings):
        raise ProtlmError(f"{there[0]} was made with other settings ({'; '.join(other)}): {remedy}")
    entries = {file.name: written.get(file.name, {}).get("content") for file in there}
    try:
        verify_entries(manifest.parent, entries, what=str(there[0]))
    except Damaged as error:
        raise Damaged(f"{error} since it was written: {remedy}") from error
    return made if len(there) == len(files) else None  # killed between the renames


def _needs(embedder: Embedder, sizes: np.ndarray, folder: Path) -> list[str]:
    """The memory and disk that it takes, as text.

    Raises:
        ProtlmError: the disk of the work folder is too full.
    """
    if not len(sizes):
        return []
    config, size = embedder.loaded.config, memory.size
    output = embedder.spec.nbytes(config.d_model, len(sizes), int(sizes.sum()))
    free, begun = shutil.disk_usage(folder).free, sum(f.stat().st_size for f in folder.iterdir())
    if free + begun < 2 * output:
        raise ProtlmError(
            f"{folder.parent} has {size(free)} free, and the embeddings take {size(output)} and as "
            "much again while they are put together: choose another disk, fewer layers, fp16, or "
            "vectors of proteins"
        )
    parameters = memory.parameter_bytes(embedder.loaded)
    each, shape = embedder.largest
    batches = embedder.at_once * each
    lines = [
        f"needs about {size(parameters + batches)} of memory on each of "
        f"{embedder.engine.mesh.size} device(s): {size(parameters)} of parameters, {size(batches)} "
        f"for {embedder.at_once} x {shape.rows} rows of {shape.length} tokens",
        f"needs {size(2 * output)} of disk while it runs ({size(free)} are free), and "
        f"{size(output)} for the result",
    ]
    if config.attention_backend == "chunked" and not embedder.packs:
        lines.append(
            "each protein has a row, with padding: attention by relative distance scores all pairs"
        )
    return lines


def _fill(embedder: Embedder, survey: Survey, parts: Parts, progress: bool) -> None:
    """Embeds what is in no part yet."""
    from protlm_jax.process.progress import Bar

    residues = survey.residues
    total, before = int(residues.sum()), int(residues[parts.done].sum())
    with Bar(
        total=total, initial=before, unit="aa", unit_scale=True, desc="embed", show=progress
    ) as bar:
        for places, records in together(survey):
            done = {i for i, place in enumerate(places) if parts.done[place]}
            for complete in embedder.embed([r.sequence for r in records], done):
                for i, arrays in complete:
                    record, place = records[i], places[i]
                    if fault := _fault(embedder, record.sequence, arrays):
                        parts.fail(Failure(place, record.line, record.id, fault))
                    else:
                        parts.add(place, len(record.sequence), arrays)
                    bar.update(len(record.sequence))
                parts.flush()
        parts.flush(whole=True)


def _fault(embedder: Embedder, sequence: str, arrays: dict[str, np.ndarray]) -> str:
    """Why an embedding is not finite; "" where it is."""
    if all(np.isfinite(array).all() for array in arrays.values()):
        return ""
    if first_not_finite(embedder.loaded, sequence):
        return f"the embedding is not finite: {reason(embedder.loaded, sequence)}"
    return f"values exceed the range of {embedder.spec.dtype}: choose bf16 or fp32"


def _assemble(
    parts: Parts,
    survey: Survey,
    embedder: Embedder,
    files: dict[Path, tuple[str, ...]],
    made: dict[str, Any],
) -> dict[str, Any]:
    """Writes and checks the output files in the work folder; returns their manifest entries."""
    about = {"made_by": "protlm embed", "model": made["model"]}
    about["settings"] = json.dumps(made["settings"])
    spec, width = embedder.spec, embedder.loaded.config.d_model

    def entries(vectors: tuple[str, ...]) -> Iterator[formats.Entry]:
        """The proteins in the order of the input; of those with one key the first."""
        first: dict[str, str] = {}
        made["doubles"] = []
        for place, record in again(survey):
            if not isinstance(record, Record) or not parts.has(place):
                continue
            key = formats.key_of(survey.keys, place, record)
            if key in first:
                double = {"record": place, "id": record.id, "written_as": first[key]}
                made["doubles"].append(double)
                continue
            if survey.keys in formats.OF_LETTERS:
                first[key] = record.id
            arrays = {name: parts.read(place, name) for name in vectors}
            yield formats.Entry(place, key, record.id, len(record.sequence), arrays)

    written: dict[str, Any] = {}
    for target, vectors in files.items():
        file = parts.folder / target.name
        file.unlink(missing_ok=True)  # of a killed run; a link of that name is not followed
        formats.write_file(file, entries(vectors), spec, width, about)
        count = formats.check_file(file, entries(vectors), spec)
        content = [file.stat().st_size, digest_of(file)]
        written[target.name] = {"vectors": list(vectors), "proteins": count, "content": content}
    parts.verify()
    return written


def _outcome(made: dict[str, Any], output: Path, *, again: bool = False) -> Outcome:
    """What a manifest records as text; `again`: the files existed before."""
    settings, window = made["settings"], made["settings"]["window"]
    layers, depth = settings["layers"], settings["of_layers"]
    what = f"layer {layers[0]} of {depth}" if len(layers) == 1 else f"{len(layers)} layers"
    began = "nothing to do: " if again else ""
    lines = [
        f"{began}{made['embedded']:,} of {made['proteins']:,} proteins embedded, "
        f"{made['residues']:,} residues: {' and '.join(settings['vectors'])}, {what}, "
        f"{settings['dtype']}, computed in {settings['compute']}"
    ]
    lines += listed(
        [f"{double['id']} (as {double['written_as']})" for double in made.get("doubles", [])],
        "with the letters of an earlier protein, under whose name they are written once",
    )
    if made["trained_tokens"] is not None and window > made["trained_tokens"]:
        lines.append(
            f"windows have up to {window} residues, more than the rows of {made['trained_tokens']} "
            "tokens that the model was trained on: longer distances were never trained"
        )
    lines += listed(
        [f"{w['id']} ({w['residues']:,} in {w['windows']})" for w in made["windowed"]],
        f"longer than {window:,} residues, read through windows that overlap by half, each residue "
        "taken where it is farthest from a cut",
    )
    failures = [
        f"line {f['line']}, {f['id'] or 'without a name'}: {f['reason']}" for f in made["failures"]
    ]
    lines += listed(failures, "not embedded")
    names = ", ".join(str(output.with_name(name)) for name in made["files"])
    verb = "they are in" if again else "wrote"
    lines.append(f"{verb} {names} and {output.with_name(output.name + '.json')}")
    return Outcome("\n".join(lines), len(failures))
