"""What documents name exists, and what recipes tell people to run can be run at their size."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest

from protlm_jax import cli

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "benchmarks/RESULTS.md")),
    *sorted(ROOT.glob("docs/**/*.md")),
]
FOLDERS = "benchmarks|configs|docs|gin|protlm_jax|requirements|tests|tpu_scripts"
FILE = re.compile(rf"(?<![\w/.~-])((?:{FOLDERS})/[\w./-]*\w)")
MODULE = re.compile(r"\bprotlm_jax(?:\.\w+)+")
PATTERNS = {"protlm_jax/models/families/NAME.py"}
RECIPES = [
    file
    for file in sorted((ROOT / "configs").glob("*.py"))
    if file.stem not in ("adapt", "depth_study", "finetune", "tiny")
]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda file: file.name)
def test_files_and_modules_that_a_document_names_exist(document: Path) -> None:
    text = document.read_text()
    files = {name for name in FILE.findall(text) if name not in PATTERNS}
    assert [name for name in sorted(files) if not (ROOT / name).exists()] == []
    # "protlm_jax.data.prepare.direct" may be a module, or a name in one.
    places = {name: ROOT / name.replace(".", "/") for name in MODULE.findall(text)}
    assert [
        name
        for name, place in places.items()
        if not (place.is_dir() or place.with_suffix(".py").exists() or _in_module(place))
    ] == []


def test_the_reading_path_is_short() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    page = text.partition("a reading path\n")[2].partition("\n## ")[0]
    lines = [
        len((ROOT / f).read_text().splitlines()) for f in FILE.findall(page) if "tests/" not in f
    ]
    assert len(lines) > 10 and max(lines) < 400 and sum(lines) < 3000


def _in_module(place: Path) -> bool:
    for file in (place.parent.with_suffix(".py"), place.parent / "__init__.py"):
        if file.exists() and re.search(rf"\b{place.name}\b", file.read_text()):
            return True
    return False


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda file: file.stem)
def test_a_recipe_prepares_its_corpus_and_its_commands_parse(recipe: Path) -> None:
    """A corpus of billions of residues is read from disk, not from a FASTA file in memory."""
    header = ast.get_docstring(ast.parse(recipe.read_text())) or ""
    text = header.replace("\\\n", " ")
    commands = [line.strip() for line in text.splitlines() if line.startswith("    protlm ")]
    verbs = [command.split()[1] for command in commands]
    assert "prepare" in verbs and "train" in verbs and "data.fasta" not in header
    made = {
        shlex.split(c)[shlex.split(c).index("--output") + 1] for c in commands if " prepare " in c
    }
    used = set(re.findall(r"data\.prepared=(\S+)", text))
    assert used == made
    for command in commands:
        words = shlex.split(command)[1:]
        cli._parser().parse_args([word for word in words if not word.startswith("--config.")])
