"""What the README shows runs as it stands."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_python_examples_run(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})


def test_named_files_exist():
    named = re.findall(r"\b(?:scripts|configs|tests|benchmarks|docs)/[\w/.-]+\.\w+", README)
    assert named and [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("script", sorted(ROOT.glob("scripts/**/*.sh")), ids=lambda path: path.name)
def test_scripts_stop_at_errors_and_name_no_absolute_path(script):
    text = script.read_text()
    assert "set -euo pipefail" in text
    assert not re.search(r"(?<![\w}./~])/(home|root|work|data|mnt)/", text)
