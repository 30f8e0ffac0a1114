"""What the pages say is what the code does, every link leads somewhere, and the site builds without a warning."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import click
import pytest
import typer
import yaml
from paths import ROOT

from adg_plugin.config.page import settings_page

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md")])
FORMATS = ROOT / "docs/formats.md"


def code(cell: str) -> list[str]:
    """Return what stands between backticks."""
    return re.findall(r"`([^`]+)`", cell)


def tables(page: Path, heading: str | None = None) -> list[list[list[str]]]:
    """Return the tables below a heading, or all of a page: the cells of each row, the header first."""
    text = page.read_text(encoding="utf-8")
    if heading is not None:
        text = re.split(r"^#+ ", text.split(f"# {heading}\n", 1)[1], maxsplit=1, flags=re.M)[0]
    found = re.findall(r"(?:^\|.*\|\n)+", text, re.M)
    rows = [[re.split(r" ?\| ?", line.strip("|").strip()) for line in table.splitlines()] for table in found]
    return [[header, *body] for header, _, *body in rows]


def first_cells(heading: str) -> list[str]:
    """Return all that stands between backticks in the first column of the table below a heading of formats.md."""
    return [name for row in tables(FORMATS, heading)[0][1:] for name in code(row[0])]


def test_the_readme_and_the_citation_name_the_paper_and_keep_its_authors_apart_from_ours():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    paper = citation["preferred-citation"]
    assert paper["title"] == "Instruction Data Selection via Answer Divergence"
    assert [author["family-names"] for author in paper["authors"]] == ["Li", "Wang", "Zhang", "Ye"]
    assert paper["identifiers"][0]["value"] == "2026.acl-long.214"
    assert citation["authors"] == [{"name": "the adg-plugin authors"}]
    assert all(part in (ROOT / "README.md").read_text(encoding="utf-8") for part in (paper["title"], paper["url"]))


def test_the_settings_page_is_that_of_the_schema():
    assert (ROOT / "docs/settings.md").read_text(encoding="utf-8") == settings_page(), (
        "run: adg settings > docs/settings.md"
    )


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, by the rule of code hosts."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in re.findall(r"^#+ (.+)$", text, re.M)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_of_a_page_leads_somewhere_on_a_code_host(page):
    for target, _, anchor in (
        link.partition("#") for link in re.findall(r"\]\((?!https?://)([^)]+)\)", page.read_text(encoding="utf-8"))
    ):
        linked = page.parent / target if target else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), f"{target}#{anchor}"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site and what the build said; whoever tries to reach the network fails."""
    folder = tmp_path_factory.mktemp("site")
    dead = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, **dead, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout + done.stderr


def test_the_site_builds_without_a_warning(site):
    folder, said = site
    assert not re.search(r"warn|error|deprecat", said, re.I), said
    for page in ROOT.glob("docs/*.md"):
        assert (folder / page.with_suffix(".html").name).is_file()
    assert "Keep a Changelog" in (folder / "changelog.html").read_text(encoding="utf-8")
    assert "llama3.1-8b-qlora" in (folder / "recipes.html").read_text(encoding="utf-8")
    index = json.loads((folder / "search/search_index.json").read_text(encoding="utf-8"))
    assert any("prompt_too_long" in entry["text"] for entry in index["docs"])


def test_the_site_loads_nothing_from_elsewhere(site):
    loads = r"<(?:script|img|iframe|source)\b[^>]*\bsrc=[\"']?(?:https?:)?//|<link\b[^>]*\bhref=[\"']?(?:https?:)?//"
    for page in site[0].rglob("*.html"):
        assert not re.search(loads, page.read_text(encoding="utf-8")), page.name
    for sheet in site[0].rglob("*.css"):
        assert not re.search(r"url\([\"']?(?:https?:)?//|@import", sheet.read_text(encoding="utf-8")), sheet.name


def test_links_out_of_docs_lead_to_pages_of_the_site(site):
    assert 'href="recipes.html#axolotl"' in (site[0] / "axolotl.html").read_text(encoding="utf-8")
    recipes = (site[0] / "recipes.html").read_text(encoding="utf-8")
    assert 'href="recipes.html#trl-literal-trl-sft"' in (site[0] / "trl.html").read_text(encoding="utf-8")
    assert 'id="axolotl"' in recipes
    assert 'id="trl-literal-trl-sft"' in recipes


def test_every_example_of_a_row_is_in_the_layout_of_its_heading():
    from adg_plugin.config.schema import DatasetSpec
    from adg_plugin.data.layouts import find_layout
    from adg_plugin.data.rows import Row, parse_row
    from adg_plugin.data.sources import Record

    spec = DatasetSpec(path="memory")
    rows = FORMATS.read_text(encoding="utf-8").split("## Rows\n")[1].split("### Ids")[0]
    seen = set()
    for section in rows.split("\n### ")[1:]:
        (layout,) = code(section.partition("\n")[0])
        for example in re.findall(r"```json\n(.*?)```", section, re.S):
            data = json.loads(example)
            assert find_layout(data, spec) == layout
            row = parse_row(Record(data, "formats.md", spec))
            assert isinstance(row, Row)
            assert row.answer is not None
            seen.add(layout)
    assert seen == {"alpaca", "messages", "prompt_completion", "sharegpt"}


def test_the_accepted_files_are_those_of_the_readers():
    from adg_plugin.data.readers import _COMPRESSIONS, _FORMATS

    section = FORMATS.read_text(encoding="utf-8").split("### Files\n")[1].split("\n## ")[0]
    assert {name for name in code(section) if name.startswith(".")} == {*_FORMATS, *_COMPRESSIONS}


def test_every_reason_of_a_rejection_is_in_the_table():
    from adg_plugin.data.cells import Reason
    from adg_plugin.data.filters import DISAGREES
    from adg_plugin.engines.forward import results
    from adg_plugin.engines.judges.causal_lm import ANSWER_TOO_SHORT
    from adg_plugin.selectors.likelihood.selectors import ABOVE_1, NOT_BELOW_1
    from adg_plugin.selectors.measure import NOT_MEASURED
    from adg_plugin.selectors.mig.selector import BAD_LABELS

    of_engines = {value for name, value in vars(results).items() if name.isupper() and isinstance(value, str)}
    assert {results.EMPTY, results.REFUSED} <= of_engines
    of_methods = {ANSWER_TOO_SHORT, NOT_MEASURED, ABOVE_1, NOT_BELOW_1, BAD_LABELS}
    assert sorted(first_cells("Why a row is rejected")) == sorted({*Reason, *of_engines, *of_methods, DISAGREES})


def test_every_reason_of_a_choice_is_in_the_table():
    from adg_plugin.scoring.quota import IN_QUOTA, NOT_CHOSEN, TOP_UP
    from adg_plugin.selectors.candidates import BELOW, CHOSEN, NOT_REACHED

    told = {IN_QUOTA, TOP_UP, *NOT_CHOSEN.values(), CHOSEN, BELOW, NOT_REACHED}
    assert sorted(first_cells("Why a row is chosen or not")) == sorted(told)


def test_every_exit_code_is_in_the_table():
    from adg_plugin import cli, errors

    codes: dict[int, set[str]] = {0: set(), cli._INTERRUPTED: set()}
    for name, kind in vars(errors).items():
        if isinstance(kind, type) and issubclass(kind, errors.ADGError):
            codes.setdefault(kind.exit_code, set()).add(name)
    _, *rows = tables(FORMATS, "Exit codes")[0]
    assert {int(row[0]): set(code(row[1])) for row in rows} == codes


@pytest.mark.tiny
def test_every_file_and_column_of_a_run_folder_is_in_the_tables(tmp_path):
    import pyarrow.parquet as pq
    from tiny_runs import choose, pool_rows, read_jsonl, save

    pool = [*pool_rows(20), {"id": "bad", "instruction": " "}]
    every_column = {"filters": {"drop_least_agreeing": 0.1}}
    run = choose(pool, save(tmp_path / "model"), tmp_path / "run", **every_column).run_dir
    _, *files = tables(FORMATS, "The run folder")[0]
    told = {name: row[2] for row in files for name in code(row[0])}
    found = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    found = {re.sub(r"^answers/part-.*\.parquet$", "answers/part-*.parquet", name) for name in found}
    assert found <= told.keys()
    assert {name for name, there in told.items() if there in ("from the start", "at the end")} <= found
    for name in ("scores.parquet", "prompts.parquet", "answers/part-*.parquet"):
        header, *rows = tables(FORMATS, f"`{name}`")[0]
        assert header == ["column", "type", "unit", "what"]
        always = [row for row in rows if not row[3].startswith("only where")]
        columns = {column: row[1] for row in always for column in code(row[0])}
        (file,) = run.glob(name)
        types = {field.name: str(field.type) for field in pq.read_schema(file)}
        assert columns == {column: re.sub(r"\b(item|element): | not null", "", kind) for column, kind in types.items()}
    assert sorted(read_jsonl(run / "rejected.jsonl")[0]) == sorted(first_cells("`rejected.jsonl`"))


_VALUE = "\0"


@cache
def texts() -> list[str]:
    """Return every text in the code but its docstrings, with a sign in the place of each value."""
    found = []
    for path in (ROOT / "adg_plugin").rglob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
        for node in nodes:
            if isinstance(node, ast.JoinedStr):
                parts = [str(part.value) if isinstance(part, ast.Constant) else _VALUE for part in node.values]
                found.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
                found.append(re.sub(r"%[sdr]|%\.\df", _VALUE, node.value))
    return found


MESSAGES = [
    (heading[0], row[0])
    for heading, *rows in tables(ROOT / "docs/troubleshooting.md")
    for row in rows
    if heading[0] == "message"
]


@pytest.mark.parametrize("cell", [cell for _, cell in MESSAGES])
def test_the_code_says_every_message_of_the_troubleshooting_page(cell):
    (message,) = code(cell)
    fragments = [fragment for fragment in re.split(r" ?… ?", message) if fragment]
    assert sum(map(len, fragments)) > 12, "too little of the text to find it by"
    assert any(_in_order(fragments, text) for text in texts()), f"no error has this text: {message}"


def _in_order(fragments: list[str], text: str) -> bool:
    place = 0
    for fragment in fragments:
        place = text.find(fragment, place) + len(fragment)
        if place < len(fragment):
            return False
    return True


def commands_in_prose() -> list[str]:
    """Return the commands of this package that stand between backticks in a sentence or a table."""
    found = set()
    for page in PAGES:
        text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
        found.update(span for span in code(text) if re.match(r"adg [a-z]", span))
    return sorted(found)


@pytest.mark.parametrize("written", commands_in_prose())
def test_every_command_named_in_a_sentence_exists_with_its_options(written):
    from adg_plugin.cli import app

    command = typer.main.get_command(app)
    _, *words = written.split()
    while isinstance(command, click.Group) or hasattr(command, "commands"):
        if not words or not re.fullmatch(r"[a-z]+", words[0]):
            break
        assert words[0] in command.commands, f"there is no command {words[0]}"
        command = command.commands[words.pop(0)]
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    passes_on = command.context_settings.get("ignore_unknown_options", False)
    for option in re.findall(r"(?<![\w-])--[a-z][\w-]*", " ".join(words)):
        assert passes_on or option in known, f"{command.name} has no option {option}"


def test_every_command_and_option_is_on_the_page_of_commands():
    from adg_plugin.cli import app

    page = (ROOT / "docs/commands.md").read_text(encoding="utf-8")

    def check(command: click.Command, name: str) -> None:
        for below, inner in getattr(command, "commands", {}).items():
            assert f"{name} {below}" in page
            check(inner, f"{name} {below}")
        for parameter in command.params:
            long = [option for option in parameter.opts if option.startswith("--") and option != "--help"]
            # Where a switch is on by default, it is the other form that is worth a word.
            found = [*long, *parameter.secondary_opts]
            assert not long or any(option in page for option in found), f"{name} {found[0]} is not in commands.md"

    check(typer.main.get_command(app), "adg")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_benchmark_named_on_a_page_exists_with_its_options(page):
    for path, rest in re.findall(r"python (benchmarks/\w+\.py)([^`\n]*)`", page.read_text(encoding="utf-8")):
        source = (ROOT / path).read_text(encoding="utf-8")
        for option in re.findall(r"--[a-z][\w-]*", rest):
            assert f'"{option}"' in source, f"{path} has no option {option}"


def test_make_docs_is_a_target():
    assert shutil.which("make"), "install make"
    plan = subprocess.run(["make", "--dry-run", "docs"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert "mkdocs build --strict" in plan.stdout, plan.stderr
    assert subprocess.run(["git", "check-ignore", "site/index.html"], cwd=ROOT).returncode == 0
