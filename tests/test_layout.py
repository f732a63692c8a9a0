"""The house's plan: imports run downwards, one subject a file, files and functions stay short."""

import ast

import pytest
from conftest import ROOT

ROOMS = ["cli", "files", "imagefiles", "twins", "scenes", "photos", "devices", "sampling",
         "recovery", "checkpoints", "figures", "run", "weights", "perceptual", "features", "rows",
         "report", "verdict", "page", "pictures"]
NEEDS = {  # each imports only from rooms before it, and of those, of nets and of metrics only:
    "imagefiles": "cli", "photos": "cli files imagefiles", "devices": "cli", "recovery": "sampling",
    "checkpoints": "cli files sampling nets", "figures": "files",
    "run": "cli files photos devices sampling checkpoints figures",
    "weights": "nets files", "perceptual": "files weights",
    "features": "metrics cli files photos weights perceptual", "rows": "metrics",
    "report": "cli files rows", "verdict": "rows report", "page": "files report",
    "pictures": "cli files photos sampling recovery checkpoints weights perceptual features",
    "prepare_data": "cli files imagefiles scenes twins",
    "evaluate": "nets metrics " + " ".join(ROOMS)}
FILES = sorted([*ROOT.glob("*.py"), *ROOT.glob("common/*.py"), *ROOT.glob("tests/*.py")])
OURS = [path for path in FILES if path.parent.name != "tests"]


def imported(path):
    """The project's files that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.removeprefix("common.") for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {alias.name for alias in node.names} if node.module == "common" else set()
            found |= names | {node.module.removeprefix("common.")}
    return found & {path.stem for path in OURS}


def test_every_file_has_its_room():
    assert {path.stem for path in ROOT.glob("common/*.py")} - {"__init__"} == set(ROOMS)


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.stem)
def test_imports_run_downwards(path):
    needs = NEEDS.get(path.stem, "")
    if path.stem.startswith("train_"):
        needs = "nets " + " ".join(ROOMS)
    assert imported(path) <= set(needs.split())
    if path.stem in ROOMS:
        before = ROOMS[: ROOMS.index(path.stem)]
        assert imported(path) <= {"nets", "metrics", *before}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_files_and_functions_are_short(path):
    """No file over 500 lines but nets.py, no function or method over 60."""
    assert len(path.read_text().splitlines()) <= (750 if path.name == "nets.py" else 500)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 60, node.name
