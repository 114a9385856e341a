"""The benchmark for GPUs, at toy size on the CPU."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

BENCHMARKS = str(Path(__file__).parents[1] / "benchmarks")
MISSING = (
    *("tensorflow", "seqio", "tensorflow_datasets", "apache_beam", "torch", "transformers"),
    *("ml_collections", "tensorboardX", "safetensors", "tqdm", "sklearn"),
)


@pytest.fixture(scope="module")
def benchmark() -> Any:
    sys.path.insert(0, BENCHMARKS)
    import gpu_train

    yield gpu_train
    sys.path.remove(BENCHMARKS)


@pytest.mark.slow
def test_ours_runs_where_there_is_jax_flax_and_optax_alone() -> None:
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({MISSING})); import gpu_train; "
        "gpu_train.main('--shape tiny --platform cpu --only protlm_jax --rows 2 --rounds 1 "
        "--steps 1'.split())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([BENCHMARKS, *sys.path]),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "device: cpu" in done.stdout and "this is no GPU" in done.stdout
    assert "attention xla, because there is no fused kernel for cpu" in done.stdout
    assert "tokens/s" in done.stdout and "MFU not known" in done.stdout


def test_a_gpu_that_is_not_there_is_an_error(benchmark: Any) -> None:
    with pytest.raises(benchmark.ProtlmError, match="JAX finds no GPU, but cpu"):
        benchmark.main(["--shape", "tiny", "--platform", "gpu"])
    with pytest.raises(benchmark.ProtlmError, match="--shape esm2_650m is for a GPU"):
        benchmark.main(["--shape", "esm2_650m"])


def test_rows_are_packed_from_real_proteins(benchmark: Any) -> None:
    shape = benchmark.SHAPES["tiny"]
    packed, padded = shape.batches(8), shape.batches(8, pack=False)
    assert benchmark.tokens_of(packed) > 0.9 * 8 * shape.data.length
    assert benchmark.tokens_of(padded) < benchmark.tokens_of(packed)
    assert all(b["segment_ids"].max() == 1 for b in padded)


@pytest.mark.parametrize("name", [pytest.param("tiny", marks=pytest.mark.slow), "tiny_t5"])
def test_the_other_side_trains_the_same_model_on_the_same_rows(name: str, benchmark: Any) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from gpu_train_torch import Peer

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    shape = benchmark.SHAPES[name]
    config = shape.config.replace(dropout_rate=0.0)
    shape = dataclasses.replace(shape, data=dataclasses.replace(shape.data, length=32))
    peer = Peer(config, shape.optimizer, "none")
    before = [p.detach().clone() for p in peer.model.parameters()]
    for masked in (False, True):
        assert np.isfinite(peer.run(shape.batches(2), masked=masked)(1))
    assert any((a != b).any() for a, b in zip(before, peer.model.parameters(), strict=True))
    from protlm_jax import models

    count = sum(p.numel() for p in peer.model.parameters())
    ours = models.parameter_count(models.abstract_params(models.build(config)))
    assert count == pytest.approx(ours, rel=0.01)  # ESM-2's frequencies are no parameters there
    torch.set_num_threads(threads)


@pytest.mark.long
def test_all_that_is_measured_on_a_gpu_is_rehearsed(tmp_path: Path) -> None:
    """The script that measures one GPU, at toy size: each step runs and writes its rows."""
    done = subprocess.run(
        ["bash", "benchmarks/on_gpu.sh", "--rehearse", str(tmp_path)],
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    steps = {file.stem for file in tmp_path.glob("*.md")}
    assert steps == {
        *("attention", "train_tiny", "train_tiny_t5", "embed", "score", "skip_map"),
        *("from_scratch", "probe"),
    }
