"""Pages of the site that are made from the code: a hook of MkDocs, see mkdocs.yml.

The help of every verb, the fields of a config from their dataclasses, the support matrix, notebooks
with their stored outputs, and documents that stand outside of docs/.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import re
import textwrap
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
ELSEWHERE = {
    "CONTRIBUTING.md": "reference/contributing.md",
    "CHANGELOG.md": "reference/changelog.md",
    "benchmarks/RESULTS.md": "reference/results.md",
}
PYTHON = {
    "Load, train, export": (
        "huggingface.load_model", "models.loaded.LoadedModel", "config.files.load_config",
        "training.loop.train", "huggingface.export", "huggingface.import_model",
    ),
    "Embeddings and scores": (
        "evaluation.embedding.sequences.embed_sequences", "evaluation.scoring.score.likelihoods",
        "evaluation.scoring.score.effects", "evaluation.contacts.predict.predict",
        "evaluation.contacts.regression.fit", "evaluation.contacts.precision.evaluate",
        "evaluation.noise.generate", "evaluation.noise.by_noise_level",
    ),
    "Probes and depth": (
        "evaluation.probes.run.probe", "evaluation.depth.analyse.analyse",
        "models.pruning.pruned", "models.stack.LayerProgram", "models.readouts.Readout",
    ),
    "Adding a family": (
        "models.registry.Family", "models.config.ModelConfig", "models.stacked.Stacked",
        "models.exchange.Exchange",
    ),
}  # fmt: skip


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are made here."""
    made = {
        "reference/verbs.md": "\n".join(_verbs()),
        "reference/config.md": "\n".join(_fields()),
        "reference/python.md": "\n".join(_python()),
    }
    made |= {page: _moved(name) for name, page in ELSEWHERE.items()}
    for notebook in sorted((ROOT / "docs").glob("**/*.ipynb")):
        page = notebook.relative_to(ROOT / "docs").with_suffix(".md").as_posix()
        made[page] = "\n\n".join(_cells(json.loads(notebook.read_text())))
    for name, text in made.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_nav(nav: Any, config: MkDocsConfig, files: Files) -> Any:
    """Appends pages that nobody listed to "How to"."""
    from mkdocs.structure.pages import Page

    (how_to,) = (item for item in nav.items if item.title == "How to")
    for file in files.documentation_pages():
        if file.page is None:
            page = Page(None, file, config)
            page.parent = how_to
            how_to.children.append(page)
            nav.pages.append(page)
    return nav


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fills in the matrix, and leads links out of docs/ to the pages made of those files."""
    from protlm_jax.verbs import matrix

    up = "../" * page.file.src_uri.count("/")
    for name, made in ELSEWHERE.items():
        markdown = re.sub(rf"\]\((?:\.\./)*{re.escape(name)}", f"]({up}{made}", markdown)
    markdown = re.sub(r"(\]\([\w/]+)\.ipynb", r"\1.md", markdown)
    return markdown.replace("<!-- matrix -->", matrix.markdown())


def _moved(name: str) -> str:
    text = (ROOT / name).read_text()
    return re.sub(r"\]\((?:\.\./)*docs/", "](../", text)


def _verbs() -> Iterator[str]:
    """The help of every verb, from its own parser."""
    from protlm_jax.cli import _parser

    yield "# Commands\n\nExit codes: 0, all that was asked is done; 1, an error that the message"
    yield "explains; 2, wrong arguments; 3, some records could not be used; 75, told to end: the"
    yield "same command resumes.\n"
    parser = _parser()
    (verbs,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    for name, verb in verbs.choices.items():
        verb.formatter_class = type("Wide", (verb.formatter_class,), {"__init__": _wide})
        yield f"## {name}\n\n```text\n{verb.format_help()}```\n"


def _wide(self: argparse.HelpFormatter, prog: str) -> None:
    argparse.HelpFormatter.__init__(self, prog, max_help_position=28, width=96)


def _fields() -> Iterator[str]:
    """Each section of a config: its docstring, and fields with types and defaults."""
    from protlm_jax.config.run import SECTIONS, RunConfig
    from protlm_jax.objectives import OBJECTIVES

    yield "# Fields of a config\n\nOn the command line: `--config.SECTION.FIELD=VALUE`. `protlm"
    yield "configs NAME` prints all fields of a config with their values.\n"
    hints = typing.get_type_hints(RunConfig)
    sections = [(name, hints[name]) for name in SECTIONS if name != "objective"]
    sections += [(f"objective, name={name!r}", kind) for name, kind in OBJECTIVES.items()]
    for name, kind in sections:
        yield f"## {name}\n"
        yield _docstring(kind)
        yield "\n| field | type | default |\n|---|---|---|"
        for field in dataclasses.fields(kind):
            if field.name != "vocabulary" or name == "model":
                missing = field.default is dataclasses.MISSING
                default = "required" if missing else f"`{field.default!r}`"
                yield f"| `{field.name}` | `{str(field.type).replace('|', '&#124;')}` | {default} |"
        yield ""


def _docstring(kind: type) -> str:
    """Its text, with "Attributes:" as a list."""
    text, _, attributes = (inspect.getdoc(kind) or "").partition("Attributes:\n")
    items = re.sub(r"^([\w, ]+): ", r"- `\1`: ", textwrap.dedent(attributes), flags=re.M)
    return f"{text}\n{items}"


def _python() -> Iterator[str]:
    yield "# Python\n\nThe functions behind the commands. Arrays are NumPy's or JAX's, results with"
    yield "named dimensions xarray's. What is not listed may change without notice.\n"
    for title, names in PYTHON.items():
        yield f"## {title}\n"
        yield from (f"::: protlm_jax.{name}\n" for name in names)


def _cells(notebook: dict[str, Any]) -> Iterator[str]:
    """A notebook with its stored outputs."""
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        yield source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```"
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            plain = "".join(output.get("text", data.get("text/plain", "")))
            if svg := "".join(data.get("image/svg+xml", "")):
                yield f'<div class="output">{svg}</div>'
            elif plain:
                yield f"```text\n{plain.rstrip()}\n```"
