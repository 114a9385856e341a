"""Checkpoints of a run: `checkpoints/<step>/{state,data,info}`, written by Orbax in the background.

A folder whose name is a number is complete. `files.json` lists the size and digest of each file,
and every reader compares them first. A checkpoint is damaged if this comparison fails or, where an
older version wrote no digests, if it cannot be parsed; any other failure is not damage.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.checkpoint_managers import preservation_policy as preservation

from protlm_jax.config.folders import latest_step, saved_steps
from protlm_jax.errors import ProtlmError
from protlm_jax.storage.digests import Damaged, entries_of, verify
from protlm_jax.storage.files import cannot_write, write_atomically
from protlm_jax.training import orbax_messages
from protlm_jax.training.distributed import broadcast, is_primary

FORMAT = 2  # of the folder's layout and of the names in the tree; raised when either changes
FILES = "files.json"  # the seal of a checkpoint; in older ones it holds sizes alone


class DamagedCheckpoint(Damaged):
    """A checkpoint is not as it was written; raised on all hosts alike."""


class Checkpoints:
    """The checkpoints of one run, due at multiples of `every` and `keep_every` steps.

    The newest `keep` stay, and multiples of `keep_every` for good (0: none). Saving copies the
    arrays and writes in a thread. A save that fails there raises at the next `save`, `wait` or
    `close`; older checkpoints stay as they are.
    """

    def __init__(self, directory: str | Path, *, every: int, keep: int, keep_every: int = 0):
        self.directory = Path(directory).absolute()
        self._periods = [period for period in (every, keep_every) if period]
        self._saving: int | None = None
        self._messages = orbax_messages.to_file(self.directory.parent / orbax_messages.FILE)
        policies: list[Any] = [preservation.LatestN(n=keep)]
        policies += [preservation.EveryNSteps(interval_steps=keep_every)] if keep_every else []
        options = ocp.CheckpointManagerOptions(
            preservation_policy=preservation.AnyPreservationPolicy(policies),
            cleanup_tmp_directories=True,
            # Called when all files are written, before the folder gets its name.
            async_options=ocp.AsyncOptions(post_finalization_callback=self._seal),
        )
        with self._failures():
            self._manager = ocp.CheckpointManager(self.directory, options=options)

    def should_save(self, step: int) -> bool:
        """Whether a checkpoint is due at this step."""
        return any(step % period == 0 for period in self._periods)

    def save(
        self, step: int, state: Any, data: bytes, info: Mapping[str, Any] | None = None
    ) -> None:
        """Saves a state after `step` updates; a step that is saved already is left alone.

        `state` is any pytree of arrays, which may be donated afterwards; `data` is the data
        iterator's state, and `info` small, plain JSON. Raises a ProtlmError if this save or the one
        before it failed.
        """
        self.wait()
        if step in saved_steps(self.directory):
            return
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            data=ocp.args.StandardSave({"iterator": np.frombuffer(data, np.uint8)}),
            info=ocp.args.JsonSave({"format": FORMAT, **(info or {})}),
        )
        self._saving = step
        with self._failures():
            self._manager.save(step, args=args, force=True)

    def latest_step(self) -> int | None:
        """The newest complete checkpoint, None where there is none yet."""
        return latest_step(self.directory)

    def restore(self, step: int, abstract_state: Any) -> tuple[Any, bytes]:
        """The state, laid out like `abstract_state` on any mesh, and the data iterator's state.

        Raises:
            DamagedCheckpoint: it is not as it was written.
            ProtlmError: the checkpoint is missing, or holds other arrays.
        """
        path = self.directory / str(step)
        _verify_on_all_hosts(path)
        _read_info(path)
        with _reading(path):
            stored = _stored_tree(path / "state")
        _require_same_arrays(path, _arrays(stored), _arrays(abstract_state))
        with _reading(path):
            state = _restore(path / "state", ocp.args.StandardRestore(abstract_state))
            data = _restore(path / "data", ocp.args.StandardRestore())["iterator"]
        return state, np.asarray(data, np.uint8).tobytes()

    def wait(self) -> None:
        """Waits for the last save; raises a ProtlmError if it could not be written."""
        with self._failures():
            self._manager.wait_until_finished()
        self._saving = None

    def set_aside(self, step: int, error: DamagedCheckpoint) -> str:
        """Moves a damaged checkpoint to `damaged/` beside the folder; called by all hosts.

        Returns a warning that names both folders and the step to go on from; raises a ProtlmError
        where there is no older checkpoint.
        """
        older = [s for s in saved_steps(self.directory) if s < step]
        if not older:
            raise ProtlmError(f"{error}. There is no older one") from error
        broadcast(step)  # all hosts have read `older`
        aside = self.directory.parent / "damaged" / str(step)
        if is_primary():
            try:
                shutil.rmtree(aside, ignore_errors=True)
                aside.parent.mkdir(exist_ok=True)
                (self.directory / str(step)).rename(aside)
            except OSError as failure:
                raise cannot_write(aside, failure) from error
        broadcast(step)  # it is moved
        self._manager.reload()
        return f"WARNING: {error}. It was moved to {aside}; going on from step {older[-1]} instead"

    def close(self) -> None:
        """Waits for the last save and closes the folder; raises like `wait`."""
        try:
            self.wait()
            with self._failures():
                self._manager.close()
        finally:
            orbax_messages.end(self._messages)

    def _seal(self) -> None:
        """Lists the files of the checkpoint that has just been written, in Orbax's thread."""
        for folder in self.directory.glob(f"{self._saving}.orbax-checkpoint-tmp*"):
            # Orbax writes once more to its own file at the top, which no reader needs.
            entries = {n: e for n, e in entries_of(folder, FILES).items() if "/" in n}
            write_atomically(folder / FILES, json.dumps(entries, indent=0, sort_keys=True) + "\n")

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """Turns a failed save into a ProtlmError, after removing what it left."""
        try:
            yield
        except Exception as error:
            step, self._saving = self._saving, None
            path = self.directory if step is None else self.directory / str(step)
            if jax.process_index() == 0:
                for leftover in self.directory.glob("*.orbax-checkpoint-tmp*"):
                    shutil.rmtree(leftover, ignore_errors=True)
            latest = latest_step(self.directory)
            kept = "none was complete yet" if latest is None else f"{latest} and older are intact"
            raise ProtlmError(f"{cannot_write(path, _root(error))} ({kept})") from error


def _read_info(path: Path) -> dict[str, Any]:
    """The JSON beside a checkpoint's state."""
    if not path.is_dir():
        found = saved_steps(path.parent)
        raise ProtlmError(f"no checkpoint at {path}: steps found there are {found or 'none'}")
    with _reading(path):
        info = _restore(path / "info", ocp.args.JsonRestore())
    if info.get("format") != FORMAT:
        raise ProtlmError(
            f"checkpoint {path} has format {info.get('format')}, this version of protlm_jax reads "
            f"{FORMAT}: use the version that wrote it"
        )
    return info


def stored_info(path: str | Path) -> dict[str, Any]:
    """What `save` was given as `info`; raises a ProtlmError where there is no such checkpoint."""
    return _read_info(Path(path).absolute())


def restore_params(path: str | Path, shardings: Any = None) -> Any:
    """The parameters of `<run>/checkpoints/<step>` as a nested dict of NumPy arrays; their moving
    average where the run keeps one.

    With `shardings`, a tree like them, those named there are read onto their devices instead.
    Raises a ProtlmError where there is no such checkpoint, or it cannot be read.
    """
    state = _checked(path)
    moments = stored_field(state, "opt_state")
    if isinstance(moments, list | tuple) and moments and "average" in (moments[0] or {}):
        return _read_field(state, "opt_state", [{"average": shardings}])[0]["average"]
    return _read_field(state, "params", shardings)


def restore_part(path: str | Path, name: str, shardings: Any = None) -> Any:
    """As `restore_params`, of a field of the state such as "opt_state"; None without it."""
    return _read_field(_checked(path), name, shardings)


def _checked(path: str | Path) -> Path:
    """The folder of the state of a checkpoint that is as it was written."""
    path = Path(path).absolute()
    _verify(path, ": copy it again, or read another checkpoint of the run")
    _read_info(path)
    return path / "state"


def restore_field(folder: Path, name: str) -> Any:
    """As `restore_part`, of any tree that Orbax stored in a folder of a checkpoint."""
    _verify(folder.parent, ": copy it again")
    return _read_field(folder, name)


def stored_field(folder: Path, name: str) -> Any:
    """As `restore_field`, with shapes and dtypes instead of arrays; these are not read."""
    with _reading(folder.parent):
        return _stored_tree(folder).get(name)


def _read_field(folder: Path, name: str, shardings: Any = None) -> Any:
    on_devices = dict(jax.tree.leaves_with_path({name: shardings}))

    def place(path: Any, _: Any) -> ocp.RestoreArgs:
        if sharding := on_devices.get(path):
            return ocp.ArrayRestoreArgs(sharding=sharding)
        return ocp.RestoreArgs(restore_type=np.ndarray)

    with _reading(folder.parent), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        stored = _stored_tree(folder)
        if name not in stored:
            return None
        part = {name: stored[name]}
        places = jax.tree.map_with_path(place, part)
        args = ocp.args.PyTreeRestore(part, restore_args=places, partial_restore=True)
        return reader.restore(folder, args=args)[name]


def _restore(path: Path, args: Any) -> Any:
    is_json = isinstance(args, ocp.args.JsonRestore)
    handler = ocp.JsonCheckpointHandler() if is_json else ocp.StandardCheckpointHandler()
    with ocp.Checkpointer(handler) as reader:
        return reader.restore(path, args=args)


def _stored_tree(path: Path) -> Any:
    """The saved pytree as nested dicts and lists, with shape and dtype at its leaves."""
    # The handler itself: a Checkpointer swallows what is wrong with the file.
    return ocp.PyTreeCheckpointHandler().metadata(epath.Path(path)).tree


def _arrays(tree: Any) -> dict[str, str]:
    """Path to "dtype[shape]" of every array, for a state and for what Orbax stored of it alike."""
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{x.dtype}{list(x.shape)}"
        for path, x in flat
    }


def _require_same_arrays(path: Path, stored: dict[str, str], expected: dict[str, str]) -> None:
    for name in sorted(stored.keys() | expected.keys()):
        there, here = stored.get(name, "missing"), expected.get(name, "missing")
        if there != here:
            raise ProtlmError(
                f"checkpoint {path} was written by another configuration: {name} is {there} there "
                f"and {here} in this run. Use the configuration of that run or another workdir"
            )


def _verify(path: Path, remedy: str = "") -> None:
    """Raises DamagedCheckpoint where a file is not the one that was written."""
    try:
        verify(path, FILES, what=f"checkpoint {path}")
    except Damaged as error:
        raise DamagedCheckpoint(f"{error}{remedy}") from error


def _verify_on_all_hosts(path: Path) -> None:
    """As `_verify`, read by host 0 alone; all hosts raise the same error."""
    found: ProtlmError | None = None
    if is_primary():
        try:
            _verify(path)
        except ProtlmError as error:
            found = error
    kinds = (None, DamagedCheckpoint, ProtlmError)
    number = 0 if found is None else 1 if isinstance(found, DamagedCheckpoint) else 2
    if kind := kinds[broadcast(number)]:
        raise found or kind(f"checkpoint {path} did not pass the check of host 0")


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turns a reader's failures into a ProtlmError, or into DamagedCheckpoint for damage alone."""
    orbax_messages.redirect()
    try:
        yield
    except Exception as error:
        cause = _root(error)
        lines = str(cause).strip().splitlines() or [type(cause).__name__]
        text = f"checkpoint {path} cannot be read: {lines[0][:300].rstrip('.')}"
        if isinstance(cause, MemoryError) or "RESOURCE_EXHAUSTED" in str(cause):
            raise ProtlmError(
                f"{text}. There is too little memory: wait until others have released theirs, or "
                f"use more devices. The checkpoint is as it was"
            ) from error
        if not _has_digests(path) and _is_unreadable(cause):
            # Other hosts may have read their parts without an error, and cannot go back.
            kind = DamagedCheckpoint if jax.process_count() == 1 else ProtlmError
            raise kind(
                f"{text}. If it is damaged, remove this folder to continue from an older one"
            ) from error
        if isinstance(cause, OSError | ValueError):
            raise ProtlmError(f"{text}. The checkpoint is as it was") from error
        raise


def _has_digests(path: Path) -> bool:
    try:
        entries = json.loads((path / FILES).read_bytes())
        return all(isinstance(entry, list) for entry in entries.values())
    except (OSError, ValueError):
        return False


def _is_unreadable(cause: BaseException) -> bool:
    """Whether a file is missing or does not parse."""
    if isinstance(cause, FileNotFoundError | json.JSONDecodeError | UnicodeDecodeError | KeyError):
        return True
    # TensorStore's messages on an array or its database.
    starts = ("DATA_LOSS", "OUT_OF_RANGE", "NOT_FOUND", "FAILED_PRECONDITION", "Error opening")
    return isinstance(cause, ValueError) and str(cause).startswith(starts)


def _root(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error
