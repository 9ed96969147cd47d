"""The house stays as it was designed: imports point one way, modules stay small, only the command line prints."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import kimi_async

PACKAGE = Path(kimi_async.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

SPINE = ("limits", "window", "ledger", "limiter", "transport", "client", "batch", "cli")
"""Each may import those before it, directly or by way of others, and never those after."""

LEAVES = {
    "models": set(),
    "chat": set(),
    "errors": {"chat"},
    "limits": {"errors"},
    "schema": set(),
    "assembly": {"chat"},
    "functions": {"errors", "schema"},
    "tools": {"chat", "errors", "functions"},
    "jsonl": {"chat", "errors", "responses"},
    "parameters": {"errors", "models"},
    "httpx2": {"limiter", "tokens", "transport"},
    "clients": {"errors", "exchange", "httpx2", "limiter", "responses", "tokens", "transport"},
    "retry": {"errors"},
    "refusal": {"limits"},
    "events": {"limits"},
    "line": {"limits"},
    "pace": {"limits"},
    "window": set(),
    "vocabulary": set(),
    "network": set(),
    "answer": set(),
    "http11": {"answer"},
    "urls": {"errors"},
    "connections": {"errors", "http11", "network", "urls"},
    "fanout": set(),
}
"""All that each of these imports of the package."""


def part(file):
    """The module or subpackage that a file belongs to."""
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def relative(file):
    """How a failing test should name a file."""
    return str(file.relative_to(PACKAGE))


def imported(file):
    """Dotted names of everything that a file imports, wherever in it."""
    base = ("kimi_async", *file.relative_to(PACKAGE).parts[:-1])
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = ".".join(base[: len(base) + 1 - node.level]) + "." if node.level else ""
            module = (origin + (node.module or "")).rstrip(".")
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def parts_imported(file):
    """Parts of the package that a file imports, its own left aside."""
    parts = {name.split(".")[1] for name in imported(file) if name.startswith("kimi_async.")}
    return (parts & PARTS) - {part(file)}


PARTS = {part(file) for file in FILES} - {"__init__", "__main__"}
GRAPH = {name: set().union(*(parts_imported(file) for file in FILES if part(file) == name)) for name in PARTS}


def reachable(name):
    """All that a part imports, directly or by way of others."""
    found, todo = set(), [name]
    while todo:
        new = GRAPH[todo.pop()] - found
        found |= new
        todo.extend(new)
    return found


def test_the_graph_is_read_as_it_is():
    """The reader of imports sees relative, absolute and late ones."""
    assert {"limiter", "connections", "responses"} <= GRAPH["transport"]
    assert {"budgets", "refusal"} <= GRAPH["ledger"]
    assert {"splintr", "tiktoken"} <= set(imported(PACKAGE / "vocabulary.py"))


def test_imports_never_run_in_circles():
    """Parts can be put in an order in which each imports only earlier ones."""
    TopologicalSorter(GRAPH).prepare()


@pytest.mark.parametrize("name", SPINE)
def test_imports_point_one_way(name):
    """Nothing of the spine knows what is built on it."""
    if name in PARTS:
        assert reachable(name) & set(SPINE[SPINE.index(name) :]) == set()


@pytest.mark.parametrize("name", LEAVES)
def test_leaves_are_leaves(name):
    """They import exactly what they import today."""
    assert GRAPH[name] == LEAVES[name]


def test_nothing_but_the_command_line_imports_the_mock():
    """What is shipped to be used does not carry what is there to be tested against."""
    assert {name for name in PARTS if "mock" in GRAPH[name]} <= {"cli"}
    assert not any(name.startswith("kimi_async.mock") for name in imported(PACKAGE / "__init__.py"))


@pytest.mark.parametrize("file", FILES, ids=relative)
def test_no_module_is_above_400_lines(file):
    """What needs more is two things."""
    assert len(file.read_text().splitlines()) <= 400


@pytest.mark.parametrize("file", [file for file in FILES if part(file) != "cli"], ids=relative)
def test_only_the_command_line_prints(file):
    """Events and errors are for everybody else."""
    calls = [node.func for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]
    assert not [call for call in calls if isinstance(call, ast.Name) and call.id == "print"]


@pytest.mark.parametrize("file", FILES, ids=relative)
def test_every_module_says_what_it_is_for(file):
    """In its docstring."""
    assert ast.get_docstring(ast.parse(file.read_text()))


def test_importing_the_package_loads_nothing_heavy():
    """Tokenizers, servers and the command line's libraries come when they are used."""
    heavy = {
        "tiktoken",
        "splintr",
        "rich",
        "uvicorn",
        "cyclopts",
        "redis",
        "aiosqlite",
        "openai",
        "httpx2",
        "matplotlib",
    }
    heavy |= {"prompt_toolkit", "markdown_it", "docstring_parser"}
    # httpx loads rich for its own command line, where it finds it; what it loads is not ours.
    program = "import sys, httpx; had = set(sys.modules); import kimi_async; print(*set(sys.modules) - had)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) & heavy == set()
