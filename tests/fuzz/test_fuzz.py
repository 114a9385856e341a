"""Every reader accepts or refuses what it is given, a few hundred changed inputs each."""

from __future__ import annotations

from pathlib import Path

import pytest
from fuzz import harness
from fuzz.harness import Case, Fuzzer, Lost, Target
from fuzz.targets import TARGETS

INPUTS = 250  # of a reader with a share of 1; `make fuzz` tries a million over all


@pytest.mark.parametrize("name", [name for name, target in TARGETS.items() if not target.slow])
def test_a_reader_uses_or_refuses_what_it_is_given(name: str, tmp_path: Path) -> None:
    fuzzer = Fuzzer(name, TARGETS[name], tmp_path)
    found = map(fuzzer.run, range(round(INPUTS * TARGETS[name].share)))
    failed = {f.kind: f"--index {f.index} ({f.how[:200]})" for f in found if f}
    assert fuzzer.accepted, "valid inputs are read"
    assert not failed, f"again: PYTHONPATH=tests python -m fuzz.runner --only '{name}' --index ..."


def test_inputs_are_the_same_every_time_and_differ_from_each_other(tmp_path: Path) -> None:
    one, two = (Fuzzer("x", TARGETS["any JSON"], tmp_path) for _ in range(2))
    inputs = [one.input(index) for index in range(50)]
    assert inputs == [two.input(index) for index in range(50)]
    assert len({data for data, _ in inputs}) > 40


def _key_error() -> None:
    raise KeyError("x")


def _lost() -> None:
    raise Lost("1 of 2")


def _talks() -> None:
    raise SystemExit("x" * 9000)


def _never_ends() -> None:
    while True:
        try:
            sum(range(1000))
        except Exception:
            return


@pytest.mark.parametrize(
    ("read", "kind"),
    [
        (_key_error, "KeyError at "),
        (_lost, "Lost at "),
        (_never_ends, "Hang at "),
        (lambda: b"x" * (1 << 26), "memory grew by "),
        (_talks, "a long message"),
    ],
)
def test_the_fuzzer_sees_faults(read, kind: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(harness, "SECONDS", 0.5)
    monkeypatch.setattr(harness, "MOST_MEMORY", 1 << 14)
    fuzzer = Fuzzer("x", Target(lambda folder: Case(folder / "a", [b"1"], read)), tmp_path)
    failure = fuzzer.run(1)
    assert failure and failure.kind.startswith(kind)
