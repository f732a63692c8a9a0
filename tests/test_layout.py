"""The house's plan: imports run downwards, one subject a file, files and functions stay short."""

import ast

import pytest
from conftest import ROOT

ROOMS = ["cli", "files", "photos", "devices", "sampling", "checkpoints", "run", "features",
         "report", "scenes"]  # each imports only from rooms before it, and of those only:
NEEDS = {"photos": "cli files", "devices": "cli", "checkpoints": "cli files",
         "run": "cli files photos devices sampling checkpoints", "features": "cli files",
         "report": "files", "prepare_data": "cli files scenes", "nets": "", "metrics": "",
         "evaluate": "nets metrics " + " ".join(ROOMS)}
FILES = sorted([*ROOT.glob("*.py"), *ROOT.glob("common/*.py"), *ROOT.glob("tests/*.py")])


def imported(path):
    """The project's files that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.removeprefix("common.") for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {alias.name for alias in node.names} if node.module == "common" else set()
            found |= names | {node.module.removeprefix("common.")}
    return found & {path.stem for path in FILES if path.parent.name != "tests"}


@pytest.mark.parametrize("path", [p for p in FILES if p.parent.name != "tests"],
                         ids=lambda path: path.stem)
def test_imports_run_downwards(path):
    needs = NEEDS.get(path.stem, "")
    if path.stem.startswith("train_"):
        needs = "nets " + " ".join(ROOMS)
    assert imported(path) <= set(needs.split())
    if path.stem in ROOMS:
        assert imported(path) <= set(ROOMS[: ROOMS.index(path.stem)])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_files_and_functions_are_short(path):
    """No file over 600 lines, no function or method over 60."""
    assert len(path.read_text().splitlines()) <= 600
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 60, node.name
