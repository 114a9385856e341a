"""Metrics without doubles after a resume, events per layer, throughput, progress lines."""

from __future__ import annotations

import contextlib
import io
import time
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboardX.proto.event_pb2 import Event

from protlm_jax.errors import ProtlmError
from protlm_jax.storage.digests import Damaged
from protlm_jax.training.metrics import MetricsWriter, read_metrics
from protlm_jax.training.progress import ProgressReporter, Throughput, require_finite


def write(workdir: Path, resume_step: int, steps: range) -> None:
    writer = MetricsWriter(workdir, resume_step)
    for step in steps:
        writer.write(step, {"loss": jnp.float32(1 / step), "layers/encoder/x": np.ones(2) * step})
    writer.flush()
    writer.close()


def lines(workdir: Path) -> list[dict[str, Any]]:
    return read_metrics(workdir / "metrics.jsonl")


def events(workdir: Path) -> list[Event]:
    """The folder's TensorBoard records: length, its checksum, an Event, its checksum."""
    found = []
    for path in sorted(workdir.glob("events.out.tfevents.*"), key=lambda p: p.stat().st_mtime_ns):
        raw = path.read_bytes()
        while raw:
            length = int.from_bytes(raw[:8], "little")
            found.append(Event.FromString(raw[12 : 12 + length]))
            raw = raw[16 + length :]
    return found


def test_lines_hold_every_bit_and_begin_with_the_step(tmp_path: Path) -> None:
    numbers = jax.random.normal(jax.random.key(0), (50,), jnp.float32)
    writer = MetricsWriter(tmp_path, 0)
    for i, number in enumerate(numbers):
        writer.write(
            i, {"a": number, "step_count": np.int32(i), "layers/encoder/norm": numbers[:3]}
        )
    writer.close()
    assert [line["a"] for line in lines(tmp_path)] == numbers.tolist()
    assert lines(tmp_path)[7]["layers/encoder/norm"] == numbers[:3].tolist()
    text = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert all(line.startswith(f'{{"step": {i}, ') for i, line in enumerate(text))


def test_a_killed_run_has_lost_no_line(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path, 0)
    writer.write(1, {"loss": 1.0})
    assert lines(tmp_path) == [{"step": 1, "loss": 1.0}]  # before any flush or close
    writer.close()


def test_resume_cuts_later_lines(tmp_path: Path) -> None:
    write(tmp_path / "straight", 0, range(1, 9))
    write(tmp_path / "resumed", 0, range(1, 7))
    write(tmp_path / "resumed", 4, range(5, 9))
    straight, resumed = (tmp_path / name / "metrics.jsonl" for name in ("straight", "resumed"))
    assert straight.read_bytes() == resumed.read_bytes()
    write(tmp_path / "resumed", 0, range(1, 3))  # no checkpoint: from the beginning
    assert [line["step"] for line in lines(tmp_path / "resumed")] == [1, 2]


@given(cut=st.integers(0, 400), resume_step=st.integers(1, 6))
@settings(max_examples=60, deadline=None)
def test_torn_last_line(
    tmp_path_factory: pytest.TempPathFactory, cut: int, resume_step: int
) -> None:
    """Whatever byte a run was killed at, what stays are its whole lines up to the resumed step."""
    path = tmp_path_factory.mktemp("torn") / "metrics.jsonl"
    whole = [f'{{"step": {step}, "loss": {step / 3}, "a": [1, 2]}}\n' for step in range(1, 7)]
    torn = "".join(whole)[:cut]
    path.write_text(torn)
    MetricsWriter(path.parent, resume_step).close()
    assert path.read_text() == "".join(whole[: min(resume_step, torn.count("\n"))])


def test_every_flipped_bit_of_a_line_is_named_and_nothing_is_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, 0, range(1, 5))
    file = tmp_path / "metrics.jsonl"
    whole, text = lines(tmp_path), file.read_bytes()
    start, end = (len(b"".join(text.splitlines(keepends=True)[:n])) for n in (1, 2))
    for bit in range(8 * start, 8 * end):
        damaged = bytearray(text)
        damaged[bit // 8] ^= 1 << bit % 8
        file.write_bytes(damaged)
        try:
            assert read_metrics(file) == whole, bit  # such as E+01 for e+01
        except Damaged as error:
            assert f"{file}, line 2 is damaged" in str(error)
            if bit % 97 == 0:
                MetricsWriter(tmp_path, 4).close()
                assert file.read_bytes() == damaged
                warning = f"WARNING: {file}, line 2 is damaged; it stays as it is"
                assert capsys.readouterr().err.strip() == warning
    file.write_bytes(text.replace(b'"step": 3', b'"step": 2'))
    MetricsWriter(tmp_path, 2).close()
    assert lines(tmp_path) == whole[:2]
    assert "line 3 is damaged; it is cut off with" in capsys.readouterr().err


def test_lines_of_older_versions_have_no_checksum(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1, "loss": 1.5}\n{"step": 2, "x": [1, null]}\n')
    assert read_metrics(file) == [{"step": 1, "loss": 1.5}, {"step": 2, "x": [1, None]}]
    write(tmp_path, 2, range(3, 5))
    assert [line["step"] for line in read_metrics(file)] == [1, 2, 3, 4]


def test_a_symbolic_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "metrics.jsonl").symlink_to("victim")
    with pytest.raises(ProtlmError, match="metrics.jsonl is a symbolic link: remove it"):
        MetricsWriter(tmp_path, 0)
    assert (tmp_path / "victim").read_text() == "precious"


def test_what_is_not_finite_is_null(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path, 0)
    writer.write(1, {"ratio": np.array([1.0, np.nan, np.inf]), "x": float("nan")})
    writer.close()
    assert lines(tmp_path) == [{"step": 1, "ratio": [1.0, None, None], "x": None}]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ProtlmError, match="cannot write .*/file/metrics.jsonl: .*another place"):
        MetricsWriter(tmp_path / "file", 0)


@pytest.mark.parametrize("which", ["lines", "events"])
def test_a_full_disk_is_one_message(tmp_path: Path, which: str) -> None:
    full = open("/dev/full", "wb", buffering=0)  # noqa: SIM115 (the writer closes it)
    writer = MetricsWriter(tmp_path, 0)
    if which == "lines":
        writer._lines = full
    else:
        writer._events._py_recordio_writer._writer = full
    with pytest.raises(ProtlmError, match=r"metrics.jsonl: No space left on device; free some"):
        writer.write(1, {"loss": 1.0})
        writer.flush()
    writer.close()


def test_tensorboard_has_a_curve_per_layer_and_purges(tmp_path: Path) -> None:
    write(tmp_path, 0, range(1, 4))
    write(tmp_path, 2, range(3, 5))
    curves = defaultdict(list)
    purges = []
    for event in events(tmp_path):
        for value in event.summary.value:
            curves[value.tag].append((event.step, value.simple_value))
        if event.HasField("session_log"):
            purges.append(event.step)
    layer = [(1, 1.0), (2, 2.0), (3, 3.0), (3, 3.0), (4, 4.0)]
    assert curves["layers/encoder/00/x"] == curves["layers/encoder/01/x"] == layer
    assert curves.keys() == {"loss", "layers/encoder/00/x", "layers/encoder/01/x"}
    assert purges == [0, 3]  # TensorBoard drops what came before with these steps or later


def test_throughput(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    devices = [SimpleNamespace(device_kind="TPU v3")] * 4
    throughput = Throughput(flops_per_token=1e9, devices=devices)
    throughput.add(999)  # with compilation: starts the clock, is not counted
    assert throughput.read() == {}
    for _ in range(5):
        clock[0] += 2.0
        throughput.add(1_000)
    with throughput.paused():
        clock[0] += 50.0  # an evaluation
    assert throughput.read() == pytest.approx(
        {
            "time/tokens_per_second": 500.0,
            "time/seconds_per_step": 2.0,
            "time/model_flops_per_second": 5e11,
            "time/mfu": 5e11 / (4 * 61.5e12),
        }
    )
    assert throughput.read() == {}
    clock[0] += 1.0
    throughput.add(100)
    assert throughput.read()["time/tokens_per_second"] == pytest.approx(100.0)


@pytest.mark.parametrize(
    ("kind", "peak"),
    [("TPU v5p", 459e12), ("TPU v5 lite", 197e12), ("NVIDIA H200", 989e12), ("cpu", 0)],
)
def test_peaks_of_known_devices(kind: str, peak: float) -> None:
    throughput = Throughput(1.0, [SimpleNamespace(device_kind=kind)])
    assert throughput.peak == peak
    throughput.add(1)
    throughput.add(1)
    assert ("time/mfu" in throughput.read()) == (peak > 0)


def test_a_log_gets_plain_lines() -> None:
    log = io.StringIO()
    with contextlib.closing(ProgressReporter(10, 3, every=4, stream=log)) as progress:
        for step in range(4, 11):
            progress.update(step, {"loss": jnp.float32(2.5), "asked/accuracy": 0.25, "other": 1})
            if step == 8:
                progress.evaluated(step, {"heldout/nll": 2.75})
    text = log.getvalue()
    assert [line.split(":")[0] for line in text.splitlines()] == [
        "step 4/10",
        "step 8/10",
        "step 8/10",
        "step 10/10",
    ]
    assert "step 8/10: loss 2.5000, accuracy 0.2500, 0:00:0" in text
    assert "step 8/10: heldout/nll 2.7500" in text
    assert "\r" not in text


def test_a_terminal_gets_a_bar() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    with contextlib.closing(ProgressReporter(10, 5, every=1, stream=terminal)) as progress:
        for step in range(6, 11):
            progress.update(step, {"loss": 2.5})
        progress.evaluated(10, {"heldout/nll": 2.75})
    text = terminal.getvalue()
    assert "\r" in text and "10/10" in text and "loss=2.5000" in text
    assert "step 10: heldout/nll 2.7500\n" in text


def test_what_is_not_finite_stops_the_run() -> None:
    require_finite(3, 1.0)
    with pytest.raises(ProtlmError, match="gradient_norm is nan at step 17"):
        require_finite(17, float("nan"), "gradient_norm")
