"""The architecture: which module may import which."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*ROOT.glob("modeling_armt/**/*.py"), *ROOT.glob("lm_experiments_tools/**/*.py")])
FIGURE = ROOT / "modeling_armt" / "inspect" / "figure.py"


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
        # safetensors and tqdm come with transformers; matplotlib is for the one picture, and imported when it is drawn
        allowed = {"torch", "transformers", "safetensors", "tqdm"} | ({"matplotlib"} if path == FIGURE else set())
        assert names - set(sys.stdlib_module_names) <= allowed
    else:
        assert "modeling_armt" not in names


def test_matplotlib_is_imported_when_a_picture_is_drawn_and_not_before():
    tree = ast.parse(FIGURE.read_text())
    lazy = [node for function in tree.body if isinstance(function, ast.FunctionDef) for node in ast.walk(function)]
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    named = [node for node in imports if "matplotlib" in ast.unparse(node)]
    assert named and all(node in lazy for node in named)


@pytest.mark.parametrize("path", [*SOURCES, *ROOT.glob("*.py")], ids=lambda path: str(path.relative_to(ROOT)))
def test_files_are_short(path):
    assert len(path.read_text().splitlines()) < (121 if path.name.startswith("run_") else 400)


def test_the_pure_parts_of_the_model_import_no_other_part():
    for name in ("associative", "segmentation", "state", "loss"):
        tree = ast.parse((ROOT / "modeling_armt" / f"{name}.py").read_text())
        assert not [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]


def test_a_program_starts_without_what_few_runs_need():
    """Each is half a second or more, at every start of every rank."""
    slow = "datasets", "matplotlib.pyplot", "peft", "tensorboard", "torch._inductor.compile_fx"
    code = f"import run_finetuning_babilong, sys; print([name for name in {slow} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
