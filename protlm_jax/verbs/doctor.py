"""Whether this machine has what a road needs, before a pod is rented for it.

What must be installed is read from our own metadata; what no metadata says, such as which packages
break each other, stands here.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import platform
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

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

_SOURCES = ("t5x", "airio", "jestimator")  # from git: they are on no package index, or stale there
_T5X = "pip install --no-deps -r requirements/t5x.txt"


@dataclasses.dataclass(frozen=True)
class Road:
    """Something one may want to do.

    Attributes:
        what: in words.
        extras: of our metadata, comma-separated; "" for what everybody needs.
        imports: modules that must import.
        platform: of the device that JAX must see; "" for any.
    """

    what: str
    extras: str = ""
    imports: tuple[str, ...] = ()
    platform: str = ""


ROADS = {
    "train": Road("pretrain from tokens, load, analyse", "", ("protlm_jax.training.loop",)),
    "data": Road("read sequences with SeqIO", "data", ("protlm_jax.data.seqio_tasks",)),
    "embed": Road("write embeddings as HDF5 or Parquet", "embed", ("h5py", "pyarrow")),
    "probe": Road("probes and maps of embeddings", "probe", ("sklearn", "umap")),
    "report": Road("pages of charts", "report", ("jinja2", "vl_convert")),
    "hf": Road("PyTorch and transformers", "hf", ("torch", "transformers")),
    "beam": Road("prepare releases on many machines", "beam", ("apache_beam",)),
    "plan": Road("compile for a TPU pod without it", "plan"),
    "t5x": Road("T5X drives our models", "data,t5x", ("t5x.train",)),
    "gpu": Road("run on NVIDIA GPUs", "cuda", platform="gpu"),
    "tpu": Road("run on TPUs", "tpu", platform="tpu"),
}


@dataclasses.dataclass(frozen=True)
class Finding:
    """What is wrong, and the one command that mends it."""

    what: str
    mend: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument(
        "--for", dest="road", choices=tuple(ROADS),
        help="look at one road closely, importing what it imports; exit code 1 when it is broken",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    """Prints what is installed and what each road lacks; 1 when the road asked for is broken."""
    print(f"python {platform.python_version()} on {platform.system()} {platform.machine()}")
    print(", ".join(f"{name} {version}" for name in _SHOWN if (version := _version(name))))
    devices = seen_devices()
    print(f"devices: {devices or 'JAX sees none'}")
    roads = [arguments.road] if arguments.road else list(ROADS)
    broken = False
    for name in roads:
        findings = examine(name, devices)
        if arguments.road and not findings:
            findings = imported(name)
        broken |= bool(findings)
        print(f"{name:6} {'no' if findings else 'ok':3} {ROADS[name].what}")
        for mend in dict.fromkeys(finding.mend for finding in findings):
            wrong = "; ".join(finding.what for finding in findings if finding.mend == mend)
            print(f"{'':7}{wrong}\n{'':9}mend: {mend}")
    return int(broken and arguments.road is not None)


def examine(name: str, devices: str) -> list[Finding]:
    """What a road lacks, without importing anything.

    Args:
        name: of ROADS.
        devices: of `seen_devices`.
    """
    road = ROADS[name]
    install = (
        f"pip install 'protlm-jax[{road.extras}]'" if road.extras else "pip install protlm-jax"
    )
    if name == "t5x":
        install = f"pip install -r requirements/core.txt -r requirements/data.txt && {_T5X}"
    findings = [Finding(what, install) for what in _unmet(_required(road.extras.split(",")))]
    findings += [Finding(what, "pip install -U jax") for what in _unmet(_requires("jax"))]
    findings += _rivals()
    if name == "t5x":
        findings += _t5x(install)
    if road.platform and road.platform not in devices and not findings:
        findings.append(
            Finding(f"JAX sees no {road.platform}: is it there, and in no other process?", install)
        )
    return findings


def imported(name: str) -> list[Finding]:
    """What stops the modules of a road from being imported, found by a process that tries."""
    for module in ROADS[name].imports:
        done = subprocess.run(
            [sys.executable, "-c", f"import {module}"], capture_output=True, text=True, check=False
        )
        if done.returncode:
            said = (done.stderr.strip().splitlines() or ["it died"])[-1]
            return [Finding(f"import {module}: {said}", f'python -c "import {module}"  # see why')]
    return []


def seen_devices() -> str:
    """What JAX runs on, as "8 x TPU v3 (tpu)"; "" where it finds nothing or is not there."""
    if importlib.util.find_spec("jax") is None:
        return ""
    import jax

    try:
        devices = jax.devices()
    except RuntimeError:
        return ""
    return f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})"


def _required(extras: list[str]) -> list[Requirement]:
    """What our metadata asks for: always, and with each of the extras."""
    try:
        lines = metadata.requires("protlm-jax") or []
    except metadata.PackageNotFoundError:  # run from its sources
        project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())[
            "project"
        ]
        lines = list(project["dependencies"])
        for name, several in project["optional-dependencies"].items():
            lines += [f'{line}; extra == "{name}"' for line in several]
    found = {str(r): r for extra in ["", *extras] for r in _with_extra(lines, extra)}
    return list(found.values())


def _requires(name: str, extra: str = "") -> list[Requirement]:
    """What an installed distribution asks for; nothing where it is not installed."""
    try:
        return _with_extra(metadata.requires(name) or [], extra)
    except metadata.PackageNotFoundError:
        return []


def _with_extra(lines: list[str], extra: str) -> list[Requirement]:
    from packaging.requirements import Requirement

    parsed = map(Requirement, lines)
    return [r for r in parsed if r.marker is None or r.marker.evaluate({"extra": extra})]


def _unmet(requirements: list[Requirement]) -> Iterator[str]:
    """What of it is missing or of another version, in words."""
    for requirement in requirements:
        version = _distribution(requirement.name)
        if version is None:
            yield f"{requirement.name} is missing"
        elif not requirement.specifier.contains(version, prereleases=True):
            yield f"{requirement.name} is {version}, {requirement.specifier} is needed"
        for extra in requirement.extras if version else ():
            plain = set(map(str, _requires(requirement.name)))
            more = [r for r in _requires(requirement.name, extra) if str(r) not in plain]
            yield from _unmet(more)


def _rivals() -> Iterator[Finding]:
    for group in _RIVALS:
        there = [name for name in group if _distribution(name)]
        if len(there) > 1:
            names = " ".join(there)
            yield Finding(
                f"{' and '.join(there)} write into one folder: files of one stand in the other",
                f"pip uninstall -y {names} && pip install {group[0]}",
            )


def _t5x(install: str) -> Iterator[Finding]:
    for name in _SOURCES:
        if importlib.util.find_spec(name) is None:
            yield Finding(f"{name} is missing", install)
    amos = _source_of("jestimator", "amos.py")
    if re.search(r"jax\.experimental\.pjit import .*PartitionSpec", amos):
        yield Finding(
            "jestimator is the one of the package index, of 2022: T5X imports it, and it fails",
            f"pip uninstall -y jestimator && {_T5X}",
        )


def _source_of(package: str, file: str) -> str:
    spec = importlib.util.find_spec(package)
    folders = spec.submodule_search_locations if spec else None
    files = [Path(folder) / file for folder in folders or ()]
    return next((path.read_text() for path in files if path.exists()), "")


def _version(name: str) -> str:
    """As shown: a distribution's version, or where a package lies that was not installed."""
    if version := _distribution(name):
        return version
    spec = importlib.util.find_spec(name.replace("-", "_"))
    return f"at {next(iter(spec.submodule_search_locations or ()), '?')}" if spec else ""


def _distribution(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
