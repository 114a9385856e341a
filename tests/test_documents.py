"""What documents name exists, and what recipes tell people to run can be run at their size."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest

from protlm_jax import cli
from protlm_jax.config.files import _find

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


def commands(text: str) -> list[str]:
    """Lines of fenced or indented blocks that call protlm, continued lines joined."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S) + re.findall(
        r"^ {2,}.+$", text, re.M
    )
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if re.match(r"\s*protlm [a-z]", line)]


@pytest.mark.parametrize("document", [*DOCUMENTS, "--help"], ids=str)
def test_commands_that_a_document_shows_are_accepted(document: Path | str) -> None:
    """What they need beside is said there: a corpus, a model, a pod. Configs are found by name."""
    text = cli.EPILOG if document == "--help" else Path(document).read_text()
    for command in commands(text):
        words = shlex.split(command, comments=True)[1:]
        if words[-1] == "...":
            continue
        arguments, rest = cli._parser().parse_known_args(words)
        assert all(word.startswith("--config.") for word in rest), command
        assert not rest or arguments.verb in cli.CONFIGURED, command
        config = getattr(arguments, "config", None) or "tiny"
        if "my_config" not in config and config != "C":
            _find(config.partition(":")[0])


def test_the_site_is_built_without_a_warning(tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("mkdocs", reason="requirements/docs.txt is not installed")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    monkeypatch.chdir(ROOT)
    config = load_config("mkdocs.yml", site_dir=str(tmp_path))
    config.plugins.run_event("startup", command="build", dirty=False)
    build(config)
    verbs = (tmp_path / "reference/verbs.html").read_text()
    assert all(f'id="{verb}"' in verbs for verb in cli._verbs())
    fields = (tmp_path / "reference/config.html").read_text()
    assert "checkpoint_every" in fields and "prott5" in fields
    assert "load_model" in (tmp_path / "reference/python.html").read_text()
    assert "autoregressive likelihood" in (tmp_path / "which.html").read_text()
    pages = {page.relative_to(tmp_path).as_posix() for page in tmp_path.glob("**/*.html")}
    menu = (tmp_path / "index.html").read_text()
    assert 'src="iframe-worker.js"' in menu and 'src="http' not in menu  # read without a network
    made = {page for page in pages if not page.startswith(("404", "study/report", "index"))}
    assert not [page for page in made if f'href="{page}"' not in menu]


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
