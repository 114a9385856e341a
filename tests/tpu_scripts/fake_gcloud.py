#!/usr/bin/env python3
"""Stands in for `gcloud` in tests: TPU VMs are folders, SSH is bash in them, buckets are folders.

Everything lies under $FAKE: `calls.jsonl` (every call), `state` (of the VM; no file, no VM;
SUSPENDED: a request without its VM), `ssh_failures` (how many of the next connections fail),
`denied` (the bucket cannot be read), `flat` (it has no folders of its own), `workers/N` (home of
worker N) and `bucket/`. The homes of a new VM are empty.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

FAKE = Path(os.environ["FAKE"])
STATE, FAILURES, WORKERS = FAKE / "state", FAKE / "ssh_failures", FAKE / "workers"


def main() -> int:
    words = sys.argv[1:]
    with (FAKE / "calls.jsonl").open("a") as file:
        file.write(json.dumps(words) + "\n")
    flags = dict(w[2:].partition("=")[::2] for w in words if w.startswith("--"))
    plain = [w for w in words if not w.startswith("--") and w != "alpha"]
    if plain[0] == "storage":
        return storage(plain[1], plain[2:], flags)
    kind, verb, names = plain[2], plain[3], plain[4:]
    if "help" in flags:
        print("--autocheckpoint-enabled" if "alpha" in words else "")
    elif verb == "describe":
        state = STATE.read_text() if STATE.exists() else ""
        if not state or (kind, state) == ("tpu-vm", "SUSPENDED"):
            print(f"ERROR: NOT_FOUND: {names[0]}", file=sys.stderr)
            return 1
        queued = {"READY": "ACTIVE", "PREEMPTED": "SUSPENDED"}
        print(queued.get(state, state) if kind == "queued-resources" else state)
    elif verb == "create":
        shutil.rmtree(WORKERS, ignore_errors=True)
        cores = int(flags["accelerator-type"].rpartition("-")[2])
        for worker in range(-(-cores // 8)):
            (WORKERS / str(worker)).mkdir(parents=True)
        STATE.write_text("READY")
    elif verb == "delete":
        STATE.unlink()
    else:
        return connect(verb, names, flags)
    return 0


def connect(verb: str, names: list[str], flags: dict[str, str]) -> int:
    failures = int(FAILURES.read_text()) if FAILURES.exists() else 0
    if failures or STATE.read_text() != "READY":
        FAILURES.write_text(str(max(failures - 1, 0)))
        print("ssh: connect to host: Connection refused", file=sys.stderr)
        return 255
    home = WORKERS / flags["worker"]
    if verb == "scp":
        shutil.copy(names[0], home / names[1].partition(":")[2])
        return 0
    environment = {**os.environ, "HOME": str(home)}
    return subprocess.run(["sh", "-c", flags["command"]], cwd=home, env=environment).returncode


def storage(verb: str, names: list[str], flags: dict[str, str]) -> int:
    if (FAKE / "denied").exists():
        print("ERROR: 403 denied", file=sys.stderr)
        return 1
    if verb == "buckets":
        print("" if (FAKE / "flat").exists() else "True")
        return 0
    paths = [
        FAKE / "bucket" / n.removeprefix("gs://") if n.startswith("gs://") else Path(n)
        for n in names
    ]
    if not paths[0].exists():
        print("ERROR: One or more URLs matched no objects.", file=sys.stderr)
        return 1
    if verb == "cp":
        paths[1].parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(paths[0], paths[1])
    elif verb == "rsync":
        # Objects have no folders: an empty folder does not arrive.
        files = {f.relative_to(paths[0]) for f in paths[0].rglob("*") if f.is_file()}
        for file in files:
            (paths[1] / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(paths[0] / file, paths[1] / file)
        if "delete-unmatched-destination-objects" in flags:
            for file in [f for f in paths[1].rglob("*") if f.is_file()]:
                if file.relative_to(paths[1]) not in files:
                    file.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
