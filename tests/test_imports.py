"""The architecture: which module may import which."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*ROOT.glob("modeling_armt/**/*.py"), *ROOT.glob("lm_experiments_tools/**/*.py")])


def imported(path):
    """Top-level names of all modules that a file imports, wherever it does."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_packages_do_not_know_each_other(path):
    names = set(imported(path))
    if path.relative_to(ROOT).parts[0] == "modeling_armt":
        # safetensors and tqdm come with transformers
        assert names - set(sys.stdlib_module_names) <= {"torch", "transformers", "safetensors", "tqdm"}
    else:
        assert "modeling_armt" not in names


@pytest.mark.parametrize("path", [*SOURCES, *ROOT.glob("*.py")], ids=lambda path: str(path.relative_to(ROOT)))
def test_files_are_short(path):
    assert len(path.read_text().splitlines()) < (121 if path.name.startswith("run_") else 400)


def test_the_pure_parts_of_the_model_import_no_other_part():
    for name in ("associative", "segmentation", "state", "loss"):
        tree = ast.parse((ROOT / "modeling_armt" / f"{name}.py").read_text())
        assert not [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]
