"""Whether this machine has what a feature needs: packages, versions, devices.

Requirements are read from the package's own metadata. What no metadata has is listed here: packages
that overwrite each other, and those that are installed from git.
"""

from __future__ import annotations

import argparse
import importlib.util
import platform
import subprocess
import sys
from collections.abc import Iterable, Iterator
from importlib import metadata
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from packaging.requirements import Requirement

_SHOWN = (
    *("jax", "jaxlib", "libtpu", "flax", "optax", "orbax-checkpoint", "numpy"),
    *("seqio", "tensorflow", "tensorflow-text", "tensorflow-datasets", "apache-beam"),
    *("torch", "transformers", "t5x", "airio", "jestimator"),
)
# Distributions that write into one folder: of two, the one that was installed last wins.
_RIVALS = (
    ("tensorflow", "tensorflow-cpu", "tf-nightly", "tf-nightly-cpu"),
    ("tensorflow-datasets", "tfds-nightly"),
)
_FROM_GIT = ("t5x", "airio", "jestimator")  # on no package index, or outdated there
_INSTALL_T5X = (
    "pip uninstall -y jestimator; pip install -r requirements/core.txt -r requirements/data.txt && "
    "pip install --no-deps -r requirements/t5x.txt"
)


class Feature(NamedTuple):
    """What it is for, extras of our metadata, modules to import, and the platform JAX must see."""

    what: str
    extras: str = ""
    imports: tuple[str, ...] = ()
    platform: str = ""

    @property
    def install(self) -> str:
        """The command that installs what is missing."""
        if "t5x" in self.extras:
            return _INSTALL_T5X
        package = f"'protlm-jax[{self.extras}]'" if self.extras else "protlm-jax"
        return f"pip install {package}"


FEATURES = {
    "train": Feature("pretrain from tokens, load, analyse", "", ("protlm_jax.training.loop",)),
    "data": Feature("read sequences with SeqIO", "data", ("protlm_jax.data.seqio_tasks",)),
    "embed": Feature("write embeddings as HDF5 or Parquet", "embed", ("h5py", "pyarrow")),
    "probe": Feature("probes and maps of embeddings", "probe", ("sklearn", "umap")),
    "report": Feature("pages of charts", "report", ("jinja2", "vl_convert")),
    "hf": Feature("PyTorch and transformers", "hf", ("torch", "transformers")),
    "beam": Feature("prepare releases on many machines", "beam", ("apache_beam",)),
    "plan": Feature("compile for a TPU pod without it", "plan"),
    "t5x": Feature("T5X drives our models", "data,t5x", ("t5x.train",)),
    "gpu": Feature("run on NVIDIA GPUs", "cuda", platform="gpu"),
    "tpu": Feature("run on TPUs", "tpu", platform="tpu"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the verb."""
    parser.add_argument(
        "--for", dest="feature", choices=tuple(FEATURES),
        help="check this feature alone, importing its modules; exit code 1 when it does not work",
    )  # fmt: skip
    parser.add_argument(
        "--matrix", action="store_true", help="print what each family of models can do instead"
    )


def run(arguments: argparse.Namespace) -> int:
    """Prints what is installed and what each feature lacks; 1: that of --for does not work."""
    if arguments.matrix:
        from protlm_jax.verbs.matrix import text

        print(text())
        return 0
    print(f"python {platform.python_version()} on {platform.system()} {platform.machine()}")
    print(", ".join(f"{name} {version}" for name in _SHOWN if (version := _version(name))))
    devices = seen_devices()
    print(f"devices: {devices or 'JAX sees none'}")
    broken = False
    for name in [arguments.feature] if arguments.feature else FEATURES:
        found = faults(name, devices)
        if arguments.feature and not found:
            found = import_faults(name)
        broken |= bool(found)
        print(f"{name:6} {'no' if found else 'ok':3} {FEATURES[name].what}")
        for remedy in dict.fromkeys(found.values()):
            wrong = "; ".join(what for what in found if found[what] == remedy)
            print(f"{'':7}{wrong}\n{'':9}remedy: {remedy}")
    return int(broken and arguments.feature is not None)


def faults(name: str, devices: str) -> dict[str, str]:
    """What a feature lacks -> the command that installs it; imports nothing.

    `devices` is what `seen_devices` returns.
    """
    feature = FEATURES[name]
    found = {} if _version("protlm-jax") else {"protlm-jax is not installed": "pip install -e ."}
    for extra in feature.extras.split(","):
        found |= dict.fromkeys(_unmet(_requirements("protlm-jax", extra)), feature.install)
    found |= dict.fromkeys(_unmet(_requirements("jax")), "pip install -U jax")
    for group in _RIVALS:
        if len(there := [rival for rival in group if _version(rival)]) > 1:
            what = (
                f"{' and '.join(there)} write into one folder: each overwrites files of the other"
            )
            found[what] = f"pip uninstall -y {' '.join(there)} && pip install {group[0]}"
    if name == "t5x":
        missing = (source for source in _FROM_GIT if importlib.util.find_spec(source) is None)
        found |= {f"{source} is missing": feature.install for source in missing}
    if feature.platform and feature.platform not in devices and not found:
        what = f"JAX sees no {feature.platform}: is it there, and in no other process?"
        found[what] = feature.install
    return found


def import_faults(name: str) -> dict[str, str]:
    """Errors of importing a feature's modules, in a new process -> a command."""
    for module in FEATURES[name].imports:
        done = subprocess.run(
            [sys.executable, "-c", f"import {module}"], capture_output=True, text=True, check=False
        )
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["the process was killed"])[-1]
            shown = f'python -c "import {module}"  # shows where'
            return {f"import {module}: {last}": _INSTALL_T5X if name == "t5x" else shown}
    return {}


def seen_devices() -> str:
    """What JAX runs on, as "8 x TPU v3 (tpu)"; "" where it finds nothing or is not installed."""
    if importlib.util.find_spec("jax") is None:
        return ""
    import jax

    try:
        devices = jax.devices()
    except RuntimeError:
        return ""
    return f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})"


def _requirements(name: str, extra: str = "") -> list[Requirement]:
    """What an installed distribution requires, with one of its extras; else nothing."""
    from packaging.requirements import Requirement

    try:
        parsed = map(Requirement, metadata.requires(name) or [])
    except metadata.PackageNotFoundError:
        return []
    return [r for r in parsed if r.marker is None or r.marker.evaluate({"extra": extra})]


def _unmet(requirements: Iterable[Requirement]) -> Iterator[str]:
    """Requirements that are missing or of another version, in words."""
    for requirement in requirements:
        version = _version(requirement.name)
        if not version:
            yield f"{requirement.name} is missing"
        elif not requirement.specifier.contains(version, prereleases=True):
            yield f"{requirement.name} is {version}, {requirement.specifier} is needed"
        for extra in requirement.extras if version else ():
            always = _requirements(requirement.name)
            yield from _unmet(r for r in _requirements(requirement.name, extra) if r not in always)


def _version(name: str) -> str:
    """The version of an installed distribution; "" where there is none."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""
