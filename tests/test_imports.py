"""What may be imported where: nothing but the data pipeline needs TensorFlow."""

from __future__ import annotations

import ast
import functools
import itertools
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOMS = (
    "models",
    "objectives",
    "partitioning",
    "training.step",
    "training.loop",
    "huggingface",
    "evaluation.verbs",
    "verbs.quickstart",
    "data.pipeline",
    "t5x_bridge.reading",
)


PACKAGE = Path(__file__).parents[1] / "protlm_jax"

# From low to high, as in CONTRIBUTING.md: a module imports of its own level and of those before it.
LEVELS = (
    ("protlm_jax", "errors"),
    ("storage", "process"),
    ("vocabularies",),
    ("data", "bundled"),
    ("models",),
    ("objectives",),
    ("partitioning",),
    ("config",),
    ("training",),
    ("planning",),
    ("huggingface", "t5x_bridge"),
    ("evaluation",),
    ("report",),
    ("verbs",),  # and the modules named verb, verbs or *_verb of every room
    ("cli",),
)
# Rooms beside each other in that order.
APART = {
    "evaluation": ("training", "planning", "huggingface", "t5x_bridge"),
    "report": ("training", "planning", "huggingface", "t5x_bridge"),
}


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_all_but_the_data_pipeline_imports_without_tensorflow() -> None:
    heavy = ("tensorflow", "seqio", "tensorflow_datasets", "apache_beam")
    blocked = f"import sys; sys.modules.update(dict.fromkeys({heavy})); "
    run(blocked + "; ".join(f"import protlm_jax.{room}" for room in ROOMS))


@pytest.mark.parametrize("module", ["protlm_jax.data.seqio_tasks"])
def test_the_pipeline_says_what_is_missing(module: str) -> None:
    blocked = "import sys; sys.modules['tensorflow'] = sys.modules['seqio'] = None; "
    text = run(
        blocked
        + f"from protlm_jax.errors import ProtlmError\ntry: import {module}\n"
        + "except ProtlmError as error: print(error)"
    )
    assert "protlm-jax[data]" in text


def test_embedding_and_scoring_import_neither_pandas_nor_xarray() -> None:
    """They take a third of a second to import."""
    rooms = ("embedding.files", "scoring.files", "verbs")
    blocked = "import sys; sys.modules['pandas'] = sys.modules['xarray'] = None; "
    run(blocked + "; ".join(f"import protlm_jax.evaluation.{room}" for room in rooms))


def test_nothing_but_the_bridge_imports_t5x() -> None:
    """Neither T5X nor what only it needs is imported outside of the bridge, or with it."""
    foreign = re.compile(r"^\s*(?:import|from) (t5x|airio|jestimator|fiddle|gin|clu)\b", re.M)
    bridge = PACKAGE / "t5x_bridge"
    for file in PACKAGE.rglob("*.py"):
        if bridge not in file.parents:
            assert not foreign.search(file.read_text()), f"{file} imports T5X"
    listed = run(
        "import sys, protlm_jax.cli, protlm_jax.t5x_bridge\n"
        + "".join(f"import protlm_jax.{room}\n" for room in ROOMS)
        + "print([m for m in sys.modules if m.split('.')[0] in ('t5x', 'airio', 'jestimator')])"
    )
    assert listed.strip() == "[]"


def test_all_that_is_imported_is_declared() -> None:
    """Also inside of functions, and by name: a package that another one brings may go any day."""
    root = PACKAGE.parent
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    extras = itertools.chain(*project["optional-dependencies"].values())
    lines = [*project["dependencies"], *extras]
    declared = {canonicalize_name(Requirement(line).name) for line in lines}
    declared |= {"protlm-jax", "t5x"}  # the latter is on no index: requirements/t5x.txt
    known = packages_distributions()
    for file in (*root.glob("protlm_jax/**/*.py"), *root.glob("configs/*.py")):
        for name in _imported(ast.parse(file.read_text())) - set(sys.stdlib_module_names):
            brought_by = {canonicalize_name(d) for d in known.get(name, [name])}
            assert brought_by & declared, f"{file.name} imports {name}: declare it in pyproject"


def _imported(tree: ast.Module) -> set[str]:
    """First words of the names of all modules that a file imports."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(str(node.module))
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("_module"):
            found |= {a.value for a in node.args if isinstance(a, ast.Constant)}
    return {name.split(".")[0] for name in found if isinstance(name, str)}


@functools.cache
def _arrows() -> dict[str, set[str]]:
    """All imports between modules of the package, also in functions and for type checking."""
    files = {_module(file): file for file in PACKAGE.rglob("*.py")}
    arrows: dict[str, set[str]] = {}
    for module, file in files.items():
        found = set()
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert not node.level, f"{file} has a relative import"
                full = [f"{node.module}.{alias.name}" for alias in node.names]
                found |= {name if name in files else str(node.module) for name in full}
            elif isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
        arrows[module] = found & set(files)
    return arrows


def _module(file: Path) -> str:
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _room(module: str) -> str:
    first, *rest = module.split(".")[1:] or [module]
    is_verb = rest and re.fullmatch(r"(.*_)?verbs?", rest[-1])
    return "verbs" if is_verb else first


def test_no_modules_import_each_other() -> None:
    """In a circle of any length."""
    left = dict(_arrows())
    while leaves := [module for module, found in left.items() if not found & set(left)]:
        for module in leaves:
            del left[module]
    assert not left, f"in a circle, or above one: {sorted(left)}"


def test_rooms_import_downwards_only() -> None:
    level = {room: number for number, rooms in enumerate(LEVELS) for room in rooms}
    wrong = []
    for module, found in _arrows().items():
        here = _room(module)
        for other in found:
            there = _room(other)
            if level[there] > level[here] or there in APART.get(here, ()):
                wrong.append(f"{module} imports {other}")
    assert not wrong, "\n".join(sorted(wrong))


def test_the_root_holds_nothing_but_the_four() -> None:
    names = {file.name for file in PACKAGE.glob("*.py")}
    assert names == {"__init__.py", "cli.py", "errors.py", "partitioning.py"}
