"""Prose keeps its rules: examples run, links lead somewhere, figures are in the reports, docstrings begin well."""

import ast
import hashlib
import re
import shlex
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax.cli import cli_parser, load_config
from moe_jax.configuration import override
from moe_jax.routing.router import Call, Tokens
from moe_jax.training.config import TrainConfig

ROOT = Path(__file__).parents[1]
DOCUMENTS = ["README.md", "CONTRIBUTING.md", "docs/devices.md", "docs/glossary.md", "experiments/results/benchmarks.md"]
RESULTS = ROOT / "experiments/results"

# First words of sentences whose subject stands elsewhere.
FRAGMENT = re.compile(r"(What|Of|How|Whether|Where|From|The same|Those|That|By|In which|Who)\b")
# A verb in the third person, and no noun in the plural.
VERB = re.compile(
    r"(?!(Arrays|Bytes|Choices|Columns|Experts|Files|Gradients|Groups|Layers|Logits|Losses|Metrics|Models|Names)\b)"
    r"(?!(Numbers|Parameters|Results|Rows|Runs of|Seats|Seconds|Shapes|Sizes|Statistics|Steps|Sums of|This)\b)"
    r"(?!(Tokens|Values|Weights)\b)[A-Z][a-z]+s\b"
)


def run_example(name):
    """The names that the first Python example of a document defines."""
    example, *_ = re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), re.DOTALL)
    names = {}
    exec(compile(example, name, "exec"), names)
    return names


def test_the_example_of_the_readme_runs(capsys):
    run_example("README.md")
    assert "(1, 8, 16)" in capsys.readouterr().out


def test_the_router_of_contributing_routes():
    router = run_example("CONTRIBUTING.md")["SecondBest"]()
    logits = np.random.default_rng(0).normal(size=(2, 6, 4)).astype(np.float32)
    tokens = Tokens(x=jnp.ones((2, 6, 3)), valid=jnp.ones((2, 6), bool))
    setting = {"num_experts": 4, "loss_level": "group", "capacity": 6, "training": False, "params": {}, "state": {}}
    assignment, losses = router.decide(jnp.asarray(logits), tokens, Call(**setting, rng=lambda: jax.random.key(0)))
    np.testing.assert_array_equal(assignment.expert, np.argsort(logits)[..., -2])
    assert assignment.kept.all()
    assert losses == {}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_to_files(name):
    path = ROOT / name
    links = re.findall(r"\]\(([^)#]+)\)", path.read_text())
    assert links or path.name == "glossary.md"
    for link in links:
        assert (path.parent / link).exists(), link


def commands_of_training():
    """Each `moe_jax train` in the README and in docs/, as its words, with the document."""
    documents = ["README.md", "docs/devices.md"]
    texts = {name: (ROOT / name).read_text().replace("\\\n", " ") for name in documents}
    lines = [(name, line) for name, text in texts.items() for line in text.splitlines() if "-m moe_jax train" in line]
    return [pytest.param(shlex.split(line), id=f"{name}-{i}") for i, (name, line) in enumerate(lines)]


@pytest.mark.parametrize("words", commands_of_training())
def test_documented_commands_name_runs_that_can_be_built(words):
    options = cli_parser().parse_args(words[words.index("train") :])
    config = TrainConfig.from_dict(override(load_config(str(ROOT / options.config)), options.set))
    assert config.mesh.size in (1, 8, 32)


def paragraphs(text):
    """The paragraphs and list items of a document, without code, tables, pictures and headings."""
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    blocks = re.split(r"\n\s*\n|\n(?=- )", text)
    return [block.strip() for block in blocks if block.strip() and not block.lstrip().startswith(("|", "#", "!"))]


def test_the_readme_has_three_screens():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 170
    assert [block for block in paragraphs(text) if len(block.splitlines()) > 5] == []


def studies():
    """The rows of the README's table of studies, as cells."""
    rows = [line.strip("|").split("|") for line in (ROOT / "README.md").read_text().splitlines() if "[report](" in line]
    return [[cell.strip() for cell in row] for row in rows if len(row) == 5]


def report_of(study):
    """The report that a row links to."""
    return ROOT / re.search(r"\]\(([^)]+)\)", study[4])[1]


def test_the_readme_lists_every_study():
    assert sorted(map(report_of, studies())) == sorted(RESULTS.rglob("README.md"))


@pytest.mark.parametrize("study", studies(), ids=lambda study: report_of(study).parent.name)
def test_figures_of_the_readme_are_in_its_reports(study):
    found = {float(number) for number in re.findall(r"\d+\.\d+", report_of(study).read_text())}
    figures = list(re.finditer(r"\d+\.(\d+)", study[3]))
    assert figures
    for figure in figures:
        rounding = 0.5001 * 10 ** -len(figure[1])
        assert any(abs(float(figure[0]) - number) <= rounding for number in found), figure[0]


@pytest.mark.parametrize("path", sorted(RESULTS.rglob("notes.md")), ids=lambda path: path.parent.name)
def test_notes_name_the_table_that_they_are_about(path):
    """If this fails, the table has changed: read the notes again, correct them, and name the new digest."""
    digest = hashlib.sha256((path.parent / "results.jsonl").read_bytes()).hexdigest()
    assert f"digest `{digest[:12]}`" in path.read_text().splitlines()[0]


def test_the_glossary_has_one_line_for_each_term():
    lines = (ROOT / "docs/glossary.md").read_text().splitlines()
    rows = [line.strip("|").split("|") for line in lines if line.startswith("| ") and not line.startswith("| term")]
    assert all(len(row) == 2 and all(cell.strip() for cell in row) for row in rows)
    terms = [term.strip() for row in rows for term in row[0].split(",")]
    assert sorted(set(terms)) == sorted(terms)
    assert max(map(len, lines)) <= 150


def docstrings():
    """Each docstring of the code with its place, its node, and whether it is a property's."""
    for folder in ("moe_jax", "experiments", "configs"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
                text = ast.get_docstring(node) if isinstance(node, documented) else None
                if text:
                    place = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}"
                    decorators = [ast.unparse(decorator) for decorator in getattr(node, "decorator_list", [])]
                    yield place, node, any("property" in name for name in decorators), text


def test_no_docstring_begins_with_a_fragment():
    assert [f"{place}: {text.splitlines()[0]}" for place, *_, text in docstrings() if FRAGMENT.match(text)] == []


def test_docstrings_of_public_functions_begin_with_a_verb():
    wrong = [
        f"{place}: {text.splitlines()[0]}"
        for place, node, is_property, text in docstrings()
        if isinstance(node, ast.FunctionDef) and not is_property and not node.name.startswith("_")
        if not VERB.match(text)
    ]
    assert wrong == []
