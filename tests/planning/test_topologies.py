"""Pods by name, and the errors where there is none."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

from protlm_jax.errors import ProtlmError
from protlm_jax.partitioning import make_mesh
from protlm_jax.planning.topologies import topology
from protlm_jax.process import platforms

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs pip install 'protlm-jax[plan]'"
)


@pytest.mark.libtpu
@needs_libtpu
def test_the_pods_of_the_paper_have_the_cores_in_their_names() -> None:
    cores = {"v3:16x16": 512, "v3:16x32": 1024, "v4:2x2x1": 4, "v5e:2x4": 8}  # v4: cores are fused
    memory = {"v3:16x16": 15.48, "v3:16x32": 15.48, "v4:2x2x1": 30.75, "v5e:2x4": 15.75}
    pods = {name: topology(name) for name in cores}
    assert {name: len(pod.devices) for name, pod in pods.items()} == cores
    assert {name: pod.hbm for name, pod in pods.items()} == {
        name: int(size * 2**30) for name, size in memory.items()
    }
    assert pods["v3:16x32"].devices[0].device_kind == "TPU v3"


@pytest.mark.libtpu
@needs_libtpu
@pytest.mark.parametrize("name", ["v3:2x2", "v4:2x2x1", "v5e:2x4", "v5p:2x2x1", "v6e:2x4"])
def test_slices_are_several_pods(name: str) -> None:
    pod, pods = topology(name), topology(name, slices=2)
    assert (pods.name, pods.slices, pods.hbm) == (f"2 x {name}", 2, pod.hbm)
    mesh = make_mesh({"data": -1, "fsdp": 2}, pods.devices)
    assert dict(mesh.shape) == {"slices": 2, "data": len(pod.devices) // 2, "fsdp": 2, "tensor": 1}
    assert [{d.slice_index for d in slice.flat} for slice in mesh.devices] == [{0}, {1}]


@pytest.mark.parametrize("name", ["v9:2x2", "v3", "v3:", "v3:2xtwo", "16x16"])
def test_a_name_that_means_nothing_is_refused(name: str) -> None:
    with pytest.raises(ProtlmError, match=r"is not known: a generation of v2, .*v3:16x16"):
        topology(name)


@pytest.mark.libtpu
@needs_libtpu
def test_a_grid_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ProtlmError, match="topology 'v3:3x5'"):
        topology("v3:3x5")


def test_without_the_compiler_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ProtlmError, match=r"pip install 'protlm-jax\[plan\]'"):
        topology("v3:2x2")


@pytest.mark.parametrize(("vendor", "expected"), [("0x1ae0", None), ("0x8086", "1")])
def test_libtpu_is_kept_from_looking_where_there_is_no_chip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vendor: str, expected: str | None
) -> None:
    (tmp_path / "0000:00:04.0").mkdir()
    (tmp_path / "0000:00:04.0" / "vendor").write_text(f"{vendor}\n")
    monkeypatch.setattr(platforms, "PCI_DEVICES", tmp_path)
    monkeypatch.setattr(os, "environ", {})
    platforms.expect_no_tpu()
    assert os.environ.get("ALLOW_MULTIPLE_LIBTPU_LOAD") == expected
