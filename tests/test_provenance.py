"""A run folder tells with what it was made."""

import json
import os
import resource
import subprocess
import sys
import time
from importlib import metadata

import pytest

from lm_experiments_tools import provenance
from lm_experiments_tools.provenance import record_start


def git(folder, *words):
    options = ["-c", "user.name=a", "-c", "user.email=a@b"]
    done = subprocess.run(["git", *options, *words], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def code(tmp_path, monkeypatch):
    """The folder of a package in a repository of its own, which takes the place of this one."""
    folder = tmp_path / "repository" / "package"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("x = 1\n")
    (folder / "weights.bin").write_bytes(bytes(range(256)))
    (folder.parent / "beside.py").write_text("y = 1\n")
    git(folder, "init", "-q", "..")
    git(folder, "add", "..")
    git(folder, "commit", "-qm", "first")
    monkeypatch.setattr(provenance, "CODE", folder)
    return folder


@pytest.fixture
def run(tmp_path):
    return tmp_path / "run"


def rows(run):
    return [json.loads(line) for line in (run / "starts.jsonl").read_text().splitlines()]


def test_every_start_adds_a_row_that_tells_with_what(run, code, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["run.py", "--lr", "1e-3"])
    record_start(run, 1)
    record_start(run, 4)
    first, second = rows(run)
    assert (first["ranks"], second["ranks"]) == (1, 4)
    assert second["argv"] == ["run.py", "--lr", "1e-3"] and second["executable"] == sys.executable
    assert second["folder"] == os.getcwd() and second["pid"] == os.getpid() and second["host"] == os.uname().nodename
    assert second["time"] >= first["time"] and second["time"].endswith("+00:00")
    assert second["python"] == sys.version.split()[0] and 1 <= second["cpus"] <= os.cpu_count()
    assert (second["cuda"] is None) == (second["devices"] == [])
    assert second["commit"] == git(code, "rev-parse", "HEAD") and second["diff"] is None
    assert [path.name for path in run.iterdir()] == ["starts.jsonl"]


def test_versions_are_those_of_what_is_installed(run, code):
    record_start(run, 1)
    versions = rows(run)[0]["versions"]
    assert versions["torch"] == metadata.version("torch") and versions["numpy"] == metadata.version("numpy")
    assert None not in versions.values() and "pytest" not in versions


def test_variables_that_steer_a_run_are_kept_and_secrets_are_not(run, code, monkeypatch):
    kept = {"SLURM_JOB_ID": "7", "CUDA_VISIBLE_DEVICES": "", "NCCL_DEBUG": "INFO", "TORCHELASTIC_RUN_ID": "a"}
    secret = {"HOROVOD_SECRET_KEY": "s3cret", "SLURM_JOB_TOKEN": "s3cret", "NCCL_PASSWORD": "s3cret"}
    other = {"HF_TOKEN": "s3cret", "AWS_SECRET_ACCESS_KEY": "s3cret", "MY_SLURM_JOB": "s3cret"}
    for name, value in (kept | secret | other).items():
        monkeypatch.setenv(name, value)
    record_start(run, 1)
    environment = rows(run)[0]["environment"]
    assert environment == environment | kept | dict.fromkeys(secret)
    assert not environment.keys() & other.keys() and "PATH" not in environment
    assert "s3cret" not in (run / "starts.jsonl").read_text()


def test_code_that_is_not_committed_is_kept_once_and_can_be_restored(run, code, tmp_path):
    git(code, "config", "diff.noprefix", "true")
    git(code, "config", "diff.relative", "true")
    git(code, "config", "color.ui", "always")
    git(code, "config", "diff.external", "true")
    (code / "__init__.py").write_text("x = 2\n")
    (code / "weights.bin").write_bytes(bytes(reversed(range(256))))
    (code.parent / "beside.py").unlink()
    (code / "new.py").write_text("")
    git(code, "add", "new.py")
    (code / "untracked.py").write_text("")
    record_start(run, 1)
    kept = (run / rows(run)[0]["diff"]).stat()
    record_start(run, 1)
    (code / "__init__.py").write_text("x = 3\n")
    record_start(run, 1)
    names = [row["diff"] for row in rows(run)]
    assert names[0] == names[1] != names[2]
    assert {path.name for path in run.iterdir()} == {"starts.jsonl", names[0], names[2]}
    assert (run / names[0]).stat().st_ino == kept.st_ino, "written once"
    git(tmp_path, "clone", "-q", str(code.parent), "copy")
    git(tmp_path / "copy", "checkout", "-q", rows(run)[0]["commit"])
    git(tmp_path / "copy", "apply", str(run / names[0]))
    copy = tmp_path / "copy" / "package"
    assert (copy / "__init__.py").read_text() == "x = 2\n" and (copy / "new.py").exists()
    assert (copy / "weights.bin").read_bytes() == bytes(reversed(range(256)))
    assert not (copy.parent / "beside.py").exists() and not (copy / "untracked.py").exists()


def test_a_package_that_is_installed_in_a_repository_is_not_of_it(run, code, tmp_path, monkeypatch):
    installed = code / "site-packages"
    installed.mkdir()
    (installed / "__init__.py").write_text("")
    monkeypatch.setattr(provenance, "CODE", installed)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    record_start(run, 1)
    git(work, "init", "-q")
    record_start(run, 1)
    git(work, "commit", "--allow-empty", "-qm", "another")
    record_start(run, 1)
    assert [row["commit"] for row in rows(run)] == [None, None, git(work, "rev-parse", "HEAD")]
    assert [row["diff"] for row in rows(run)] == [None] * 3


def test_git_may_be_missing_or_hang(run, code, tmp_path, monkeypatch, capsys):
    (code / "__init__.py").write_text("x = 2\n")
    tools = tmp_path / "bin"
    tools.mkdir()
    monkeypatch.setenv("PATH", str(tools))
    record_start(run, 1)
    (tools / "git").write_text("#!/bin/sh\nexec /bin/sleep 60\n")
    (tools / "git").chmod(0o755)
    monkeypatch.setattr(provenance, "GIT_SECONDS", 0.2)
    begin = time.monotonic()
    record_start(run, 1)
    assert time.monotonic() - begin < 5
    assert [(row["commit"], row["diff"]) for row in rows(run)] == [(None, None)] * 2
    assert capsys.readouterr().out == ""
    (tools / "git").write_text('#!/bin/sh\n[ "$1" = -c ] && exec /bin/sleep 60\necho 1234\n')
    record_start(run, 1)
    assert rows(run)[2]["commit"] == "1234" and rows(run)[2]["diff"] is None
    assert "warning: git does not tell what is not committed" in capsys.readouterr().out


def test_a_full_disk_is_a_warning_and_earlier_rows_stay_whole(run, code, capsys):
    record_start(run, 1)
    before = (run / "starts.jsonl").read_text()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10, limits[1]))
    try:
        record_start(run, 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert f"warning: {run / 'starts.jsonl'} cannot be written" in capsys.readouterr().out
    assert (run / "starts.jsonl").read_text() == before
    record_start(run, 1)
    assert len(rows(run)) == 2
