"""Checkpoints: exact, atomic, on any mesh, and honest when the disk is full."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from protlm_jax.errors import ProtlmError
from protlm_jax.training.checkpoints import (
    Checkpoints,
    DamagedCheckpoint,
    _read_info,
    latest_step,
    restore_params,
    saved_steps,
)

DATA = bytes(range(256)) * 3


@flax.struct.dataclass
class State:
    step: Any
    params: Any
    opt_state: Any
    carry: Any


def make_state(seed: int = 0) -> State:
    keys = jax.random.split(jax.random.key(seed), 3)
    params = {
        "encoder": {"mlp": {"kernel": jax.random.normal(keys[0], (2, 136, 144))}},
        "embedder": {"token": jax.random.normal(keys[1], (30, 136))},
    }
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.masked(optax.add_decayed_weights(0.1), {"encoder": True, "embedder": False}),
        optax.scale_by_adam(),
        optax.scale_by_factored_rms(),
    )
    state = optimizer.init(params)
    state = jax.tree.map(lambda x: x + jax.random.uniform(keys[2]).astype(x.dtype), state)
    return State(jnp.int32(7), params, state, {})


def abstract(state: Any, sharding: Any = None) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state)


def assert_equal(actual: Any, expected: Any) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.fixture
def checkpoints(tmp_path: Path) -> Iterator[Checkpoints]:
    checkpoints = Checkpoints(tmp_path / "checkpoints", every=10, keep=2, keep_every=25)
    yield checkpoints
    checkpoints.close()


def test_round_trip_is_exact(checkpoints: Checkpoints) -> None:
    state = make_state()
    checkpoints.save(10, state, DATA, {"config": "abc"})
    checkpoints.wait()
    restored, data = checkpoints.restore(10, abstract(state))
    assert_equal(restored, state)
    assert data == DATA
    assert _read_info(checkpoints.directory / "10") == {"format": 2, "config": "abc"}
    params = restore_params(checkpoints.directory / "10")
    assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(params))
    assert_equal(params, jax.tree.map(np.asarray, state.params))


def test_donated_buffers_do_not_reach_the_disk(checkpoints: Checkpoints) -> None:
    state = {"x": jnp.arange(4_000_000, dtype=jnp.float32)}
    expected = jax.tree.map(np.array, state)
    overwrite = jax.jit(lambda s: jax.tree.map(lambda x: -x - 1, s), donate_argnums=0)
    checkpoints.save(10, state, DATA)
    state = overwrite(state)  # the buffer is reused while the thread may still be writing
    checkpoints.wait()
    assert_equal(checkpoints.restore(10, abstract(state))[0], expected)


def test_a_sharded_state_restores_onto_other_meshes(checkpoints: Checkpoints) -> None:
    state = make_state()
    auto = (AxisType.Auto,) * 2
    wide = jax.make_mesh((4, 2), ("fsdp", "tensor"), axis_types=auto)
    kernel = NamedSharding(wide, PartitionSpec(None, "fsdp", "tensor"))
    state.params["encoder"]["mlp"]["kernel"] = jax.device_put(
        state.params["encoder"]["mlp"]["kernel"], kernel
    )
    checkpoints.save(10, state, DATA)
    checkpoints.wait()
    narrow = Mesh(np.array(jax.devices()[:2]).reshape(1, 2), ("fsdp", "tensor"), axis_types=auto)
    one = jax.sharding.SingleDeviceSharding(jax.devices()[3])
    other = abstract(state, NamedSharding(narrow, PartitionSpec()))
    other.params["embedder"]["token"] = jax.ShapeDtypeStruct(
        (30, 136), jnp.float32, sharding=NamedSharding(narrow, PartitionSpec("tensor"))
    )
    for target in (abstract(state, one), other):
        restored, _ = checkpoints.restore(10, target)
        assert_equal(restored, state)
        shardings = jax.tree.map(lambda x, t: x.sharding == t.sharding, restored, target)
        assert all(jax.tree.leaves(shardings))


def test_the_newest_are_kept_and_some_for_good(checkpoints: Checkpoints) -> None:
    state = {"x": jnp.zeros(3)}
    due = [step for step in range(1, 81) if checkpoints.should_save(step)]
    assert due == [10, 20, 25, 30, 40, 50, 60, 70, 75, 80]
    for step in due:
        checkpoints.save(step, state, DATA)
        checkpoints.wait()
    assert saved_steps(checkpoints.directory) == [25, 50, 75, 80]
    checkpoints.save(80, {"x": jnp.ones(3)}, DATA)
    assert not checkpoints.restore(80, abstract(state))[0]["x"].any()


def test_unfinished_checkpoints_are_invisible_and_swept_up(tmp_path: Path) -> None:
    state = {"x": jnp.zeros(3)}
    for step in (10, 20):
        checkpoints = Checkpoints(tmp_path / "checkpoints", every=10, keep=2)
        leftover = checkpoints.directory / "30.orbax-checkpoint-tmp"
        assert latest_step(checkpoints.directory) == (None if step == 10 else 10)
        checkpoints.save(step, state, DATA)
        checkpoints.close()
        assert not leftover.exists()
        leftover.mkdir()
        assert checkpoints.latest_step() == step


def test_what_cannot_be_restored_is_named(checkpoints: Checkpoints) -> None:
    state = make_state()
    checkpoints.save(10, state, DATA)
    checkpoints.wait()
    with pytest.raises(ProtlmError, match=r"no checkpoint at .*/99: steps found there are \[10\]"):
        checkpoints.restore(99, abstract(state))
    wider = abstract(state)
    wider.params["embedder"]["token"] = jax.ShapeDtypeStruct((30, 137), jnp.float32)
    message = r"params/embedder/token is float32\[30, 136\] there and float32\[30, 137\] in this"
    with pytest.raises(ProtlmError, match=message):
        checkpoints.restore(10, wider)
    renamed = State(wider.step, {"decoder": {}}, wider.opt_state, {})
    with pytest.raises(ProtlmError, match="params/embedder/token is float32.* and missing in this"):
        checkpoints.restore(10, renamed)


def as_older_versions_wrote_it(path: Path, sizes: bool) -> None:
    """Leaves a checkpoint without digests, with the sizes of its files or without."""
    (path / "files.json").unlink()
    if sizes:
        found = {str(f.relative_to(path)): f.stat().st_size for f in path.rglob("*") if f.is_file()}
        (path / "files.json").write_text(json.dumps(found))


def test_older_checkpoints_have_no_digests(checkpoints: Checkpoints) -> None:
    state = make_state()
    checkpoints.save(10, state, DATA)
    checkpoints.wait()
    path = checkpoints.directory / "10"
    info, metadata = path / "info" / "metadata", path / "state" / "_METADATA"
    for sizes in (True, False):
        as_older_versions_wrote_it(path, sizes)
        assert_equal(checkpoints.restore(10, abstract(state))[0], state)
        if sizes:
            info.write_text(json.dumps({"format": 2, "more": 1}))
            with pytest.raises(DamagedCheckpoint, match="info/metadata has 24 bytes instead"):
                checkpoints.restore(10, abstract(state))
    info.write_text(json.dumps({"format": 99}))
    with pytest.raises(ProtlmError, match="/10 has format 99"):
        restore_params(path)
    info.write_text(json.dumps({"format": 2}))
    text = metadata.read_text()
    metadata.write_text(text[:-3])
    with pytest.raises(DamagedCheckpoint, match=r"/10 cannot be read: .*from an older one"):
        checkpoints.restore(10, abstract(state))
    metadata.write_text(text)
    largest = max((path / "state").rglob("*"), key=lambda file: file.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)
    with pytest.raises(DamagedCheckpoint, match=r"/10 cannot be read: OUT_OF_RANGE"):
        checkpoints.restore(10, abstract(state))
    largest.unlink()
    with pytest.raises(DamagedCheckpoint, match=r"/10 cannot be read"):
        restore_params(path)


@pytest.mark.parametrize("flips", [60, pytest.param(200, marks=pytest.mark.slow)])
def test_every_flipped_bit_is_found_or_has_no_effect(checkpoints: Checkpoints, flips: int) -> None:
    """Half of the flips anywhere, and half in files of equal probability."""
    state = make_state()
    checkpoints.save(10, state, DATA, {"config": "abc"})
    checkpoints.wait()
    path, rng = checkpoints.directory / "10", np.random.default_rng(flips)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    sizes = np.array([file.stat().st_size for file in files])
    harmless = set()
    for number in range(flips):
        file = files[rng.choice(len(files), p=sizes / sizes.sum() if number % 2 else None)]
        content = file.read_bytes()
        damaged = bytearray(content)
        damaged[rng.integers(len(content))] ^= 1 << rng.integers(8)
        file.write_bytes(damaged)
        try:
            restored, data = checkpoints.restore(10, abstract(state))
        except DamagedCheckpoint as error:
            assert str(file.relative_to(path)) in str(error) or file.name == "files.json"
            with pytest.raises(DamagedCheckpoint, match="copy it again, or read another checkp"):
                restore_params(path)
        else:
            assert_equal(restored, state)
            assert data == DATA and _read_info(checkpoints.directory / "10") == {
                "format": 2,
                "config": "abc",
            }
            harmless.add(str(file.relative_to(path)))
        file.write_bytes(content)
    # What Orbax alone uses while it writes, and spaces between entries.
    assert harmless <= {"_CHECKPOINT_METADATA", "commit_success.txt", "files.json"}
    assert_equal(checkpoints.restore(10, abstract(state))[0], state)


def test_a_checkpoint_is_sealed_before_it_has_its_name(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = {"x": jnp.zeros(3)}
    checkpoints.save(10, state, DATA)
    while not (checkpoints.directory / "10").exists():
        time.sleep(0.001)
    sealed = json.loads((checkpoints.directory / "10" / "files.json").read_text())
    assert all(digest.startswith("xxh3:") for _, digest in sealed.values())
    assert {name.partition("/")[0] for name in sealed} == {"state", "data", "info"}

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    checkpoints.save(20, state, DATA)
    with pytest.raises(
        ProtlmError, match="cannot write .*checkpoints/20: No space left on device; free some"
    ):
        checkpoints.wait()
    assert saved_steps(checkpoints.directory) == [10]


def test_a_damaged_checkpoint_is_set_aside_while_there_is_an_older_one(
    checkpoints: Checkpoints,
) -> None:
    state = make_state()
    for step in (10, 20):
        checkpoints.save(step, state, DATA)
    checkpoints.wait()
    damaged = checkpoints.directory / "20"
    next((damaged / "state").rglob("manifest.ocdbt")).unlink()
    with pytest.raises(DamagedCheckpoint, match=r"state/.*manifest.ocdbt is missing") as error:
        checkpoints.restore(20, abstract(state))
    assert "going on from step 10 instead" in checkpoints.set_aside(20, error.value)
    assert checkpoints.latest_step() == 10 and not damaged.exists()
    assert (checkpoints.directory.parent / "damaged" / "20" / "state").is_dir()
    assert_equal(checkpoints.restore(10, abstract(state))[0], state)
    checkpoints.save(20, state, DATA)  # the run comes by there again
    checkpoints.wait()
    assert_equal(checkpoints.restore(20, abstract(state))[0], state)
    with pytest.raises(ProtlmError, match="There is no older one"):
        checkpoints.set_aside(10, error.value)


# --- in processes of their own -------------------------------------------------------------------

SAVE_UNTIL_FULL = """
import resource, sys
import jax, jax.numpy as jnp
from protlm_jax.errors import ProtlmError
from protlm_jax.training import orbax_messages
from protlm_jax.training.checkpoints import Checkpoints, restore_params, saved_steps

workdir, limit = sys.argv[1], int(sys.argv[2])
state = {"params": {"w": jax.random.normal(jax.random.key(0), (500, 1000))}}
checkpoints = Checkpoints(workdir + "/checkpoints", every=1, keep=9)
checkpoints.save(1, state, b"data")
checkpoints.wait()
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    for step in range(2, 9):
        checkpoints.save(step, state, b"data")
    checkpoints.close()
except ProtlmError as error:
    print(error)
    checkpoints.close()  # the failure was told; closing is quiet
    for step in saved_steps(checkpoints.directory):
        restore_params(checkpoints.directory / str(step))
    print("intact", saved_steps(checkpoints.directory))
    print("left", sorted(p.name for p in checkpoints.directory.iterdir()))
"""

SAVE_FOR_EVER = """
import sys
import jax.numpy as jnp
from protlm_jax.training.checkpoints import Checkpoints, DamagedCheckpoint

checkpoints = Checkpoints(sys.argv[1] + "/checkpoints", every=1, keep=2)
step = checkpoints.latest_step() or 0
while True:
    step += 1
    state = {"params": {name: jnp.full((300, 300), step) for name in "abcd"}}
    checkpoints.save(step, state, str(step).encode() * 1000)
"""


# An installed libtpu looks for a TPU, and says so where there is none.
ON_CPU = {**os.environ, "JAX_PLATFORMS": "cpu"}


def run_until_full(workdir: Path, limit: int) -> list[str]:
    command = [sys.executable, "-c", SAVE_UNTIL_FULL, str(workdir), str(limit)]
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=True, env=ON_CPU
    )
    assert result.stderr == ""  # one message and no stack traces
    return result.stdout.splitlines()


def test_a_full_disk_by_file_size(tmp_path: Path) -> None:
    lines = run_until_full(tmp_path, 200_000)
    assert lines[0] == (
        f"cannot write {tmp_path}/checkpoints/2: File too large; free some space or choose "
        "another place (1 and older are intact)"
    )
    assert lines[1:] == ["intact [1]", "left ['1']"]


def test_a_full_disk_by_space(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(disk)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a small tmpfs is not allowed here")
    try:
        lines = run_until_full(disk, 0)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
    assert "No space left on device; free some space" in lines[0]
    assert lines[1].startswith("intact [1, 2")


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.long)])
def test_killed_while_saving(tmp_path: Path, kills: int) -> None:
    """Whenever it dies, what is visible is whole, and saving goes on from there."""
    directory = tmp_path / "checkpoints"
    reached = 0
    for delay in np.random.default_rng(0).uniform(0, 0.3, kills):
        process = subprocess.Popen([sys.executable, "-c", SAVE_FOR_EVER, str(tmp_path)])
        deadline = time.monotonic() + 60
        while (latest_step(directory) or 0) < reached + 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        latest = latest_step(directory)
        assert latest is not None and latest >= reached + 2
        for array in restore_params(directory / str(latest)).values():
            assert (array == latest).all()
        reached = latest
