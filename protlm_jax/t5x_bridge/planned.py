"""`protlm plan --gin_file`: starts `protlm_jax.t5x_bridge.plan` as a program of its own."""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys

from protlm_jax.errors import ProtlmError


def run(arguments: argparse.Namespace) -> int:
    """The exit code of the program, which prints the plan itself.

    Raises:
        ProtlmError: T5X is not installed, or something was asked that goes with --config alone.
    """
    for name, asked in {
        "--search": arguments.search,
        "--phase": arguments.phase,
        "--num_slices": arguments.num_slices > 1,
    }.items():
        if asked:
            raise ProtlmError(f"{name} is of --config's recipes: leave it away with --gin_file")
    if importlib.util.find_spec("t5x") is None:
        raise ProtlmError(
            "a gin recipe is T5X's, which is not installed: protlm doctor --for t5x says how"
        )
    command = [sys.executable, "-m", "protlm_jax.t5x_bridge.plan"]
    command += [f"--gin_file={file}" for file in arguments.gin_file]
    command += [f"--gin_bindings={binding}" for binding in arguments.gin]
    command += [f"--topology={arguments.topology}"]
    command += [f"--output={arguments.output}"] if arguments.output else []
    environment = {"TF_CPP_MIN_LOG_LEVEL": "3", **os.environ}
    return subprocess.run(command, env=environment, check=False).returncode
