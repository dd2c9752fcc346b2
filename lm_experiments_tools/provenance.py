"""With what a run was made: each start is a row of RUN/starts.jsonl, uncommitted code is in RUN/code-*.diff."""

import hashlib
import json
import os
import platform
import subprocess
import sys
from contextlib import suppress
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

import torch

from .loggers import say

CODE = Path(__file__).parent
STEERING = ("SLURM_JOB", "CUDA_VISIBLE", "OMP_", "NCCL_", "HOROVOD_", "TORCHELASTIC_RUN_ID", "PYTORCH_")
SECRET = ("KEY", "TOKEN", "SECRET", "PASSWORD")
GIT_SECONDS = 10
# what `git apply` takes, whatever the user's configuration
DIFF = "-c diff.relative=0 diff HEAD --binary --no-color --no-ext-diff --no-textconv --src-prefix=a/ --dst-prefix=b/"


def record_start(run: Path, ranks: int) -> None:
    """Add a row for this start, on rank 0; where the disk refuses it, a warning."""
    path = run / "starts.jsonl"
    try:
        run.mkdir(parents=True, exist_ok=True)
        before = path.read_bytes() if path.exists() else b""
        _replace(path, before + json.dumps(_row(run, ranks)).encode() + b"\n")
    except OSError as error:
        say(f"warning: {path} cannot be written ({error}); training goes on")


def _row(run: Path, ranks: int) -> dict:
    devices, versions = range(torch.cuda.device_count() if torch.cuda.is_available() else 0), {}
    for name in "torch transformers numpy safetensors peft horovod datasets tokenizers".split():
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    # a package that is installed elsewhere may lie in a repository, as in its .venv, and is not of it
    folder = CODE if _git(CODE, "ls-files --error-unmatch __init__.py") is not None else Path.cwd()
    commit = _git(folder, "rev-parse HEAD")
    environment = {name: os.environ[name] for name in sorted(os.environ) if name.startswith(STEERING)}
    environment |= {name: None for name in environment if any(word in name for word in SECRET)}
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"), "host": platform.node(), "pid": os.getpid(),
        "executable": sys.executable, "argv": sys.argv, "folder": os.getcwd(), "ranks": ranks, "versions": versions,
        "commit": commit.decode().strip() if commit else None, "diff": _keep_diff(run, folder) if commit else None,
        "python": platform.python_version(), "cpus": len(os.sched_getaffinity(0)), "environment": environment,
        "cuda": torch.version.cuda if devices else None, "devices": [*map(torch.cuda.get_device_name, devices)],
    }  # fmt: skip


def _keep_diff(run: Path, folder: Path) -> str | None:
    diff = _git(folder, DIFF)
    if diff is None:
        say(f"warning: git does not tell what is not committed in {folder}")
    if not diff:
        return None
    path = run / f"code-{hashlib.sha256(diff).hexdigest()[:12]}.diff"
    if not path.exists():
        _replace(path, diff)
    return path.name


def _git(folder: Path, words: str) -> bytes | None:
    """What git prints; None: there is no git, no repository, no such file, or no answer in time."""
    options = {"capture_output": True, "check": True, "timeout": GIT_SECONDS}
    options["env"] = os.environ | {"GIT_OPTIONAL_LOCKS": "0"}  # other jobs may start in the same repository
    with suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(["git", *words.split()], cwd=folder, **options).stdout


def _replace(path: Path, content: bytes) -> None:
    """In one step: a full disk or a kill leaves what was there."""
    path.with_suffix(".tmp").write_bytes(content)
    path.with_suffix(".tmp").replace(path)
