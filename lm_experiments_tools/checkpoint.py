"""Checkpoint folders that are whole or not there.

    RUN/checkpoints/step-00001200/   weights (safetensors), tokenizer, optimizer.pt, ranks.pt (random generators, sums
                                     not yet logged), trainer_state.json, manifest.json (sizes, SHA-256 of all of them)
    RUN/best -> checkpoints/step-... a link, so that it changes in one step

A folder is written under `.tmp`, synced and renamed. Nothing here executes a pickle: `weights_only=True`.
"""

import hashlib
import json
import os
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from .distributed.shards import Tensors, split_like, whole
from .errors import UserError
from .loggers import say

MANIFEST = "manifest.json"


class CheckpointError(RuntimeError):
    """No checkpoint of a run can be used; the message lists why."""


UNFINISHED = ".tmp"
PENDING = "-pending"  # the validation of the update is still to be made


def step_folder(run: Path, update: int, is_pending: bool = False) -> Path:
    return run / "checkpoints" / f"step-{update:08d}{PENDING if is_pending else ''}"


def step_folders(run: Path) -> list[Path]:
    """Checkpoints of a run, oldest first."""
    folders = [*(run / "checkpoints").glob("step-????????"), *(run / "checkpoints").glob(f"step-????????{PENDING}")]
    return sorted(folders, key=lambda folder: (folder.name[:13], PENDING not in folder.name))


def write_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Let `fill` write files into a temporary folder, add the manifest, sync, rename to `folder`.

    Raises:
        FileExistsError: the folder exists; nothing is touched.
        OSError: something could not be written; nothing is left.
    """
    if folder.exists():
        raise FileExistsError(f"{folder} exists; a checkpoint is never overwritten")
    temporary = folder.with_name(folder.name + UNFINISHED)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        fill(temporary)
        files = sorted(path for path in temporary.rglob("*") if path.is_file())
        manifest = {str(path.relative_to(temporary)): _fingerprint(path) for path in files}
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        for path in [*files, temporary / MANIFEST]:
            _sync(path)
        _sync(temporary)
        temporary.rename(folder)
        _sync(folder.parent)
    except (OSError, RuntimeError, SafetensorError) as error:  # the last two: of torch and safetensors on a full disk
        shutil.rmtree(temporary, ignore_errors=True)
        raise OSError(f"{folder} could not be written: {error}") from error


def _fingerprint(path: Path) -> dict[str, Any]:
    value = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            value.update(block)
    return {"size": path.stat().st_size, "sha256": value.hexdigest()}


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def problem_of(folder: Path) -> str | None:
    """Why a checkpoint folder cannot be trusted, or None."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        for name, expected in manifest.items():
            if not (folder / name).is_file():
                return f"{name} is missing"
            if _fingerprint(folder / name) != expected:
                return f"{name} differs from the manifest"
    except (OSError, ValueError) as error:
        return f"{MANIFEST} cannot be read ({error})"
    return None


def newest_checkpoint(run: Path) -> Path | None:
    """The newest checkpoint that verifies; broken newer ones are renamed `.bad`, with a warning.

    Raises:
        CheckpointError: there are checkpoints, and all are broken.
    """
    problems = []
    for folder in reversed(step_folders(run)):
        problem = problem_of(folder)
        if problem is None:
            return folder
        problems.append(f"{folder}: {problem}")
        say(f"warning: checkpoint {folder} is broken ({problem}); trying the one before")
        bad = folder.with_name(folder.name + ".bad")
        shutil.rmtree(bad, ignore_errors=True)
        folder.rename(bad)
    if problems:
        raise CheckpointError("no checkpoint can be used: " + "; ".join(problems))
    return None


def remove_leftovers(run: Path) -> None:
    """Remove folders that a killed save left behind."""
    for folder in (run / "checkpoints").glob(f"step-*{UNFINISHED}"):
        shutil.rmtree(folder)


def prune(run: Path, keep: int, best: Path | None) -> None:
    """Remove all but the newest `keep` checkpoints and the best; and what was pending before the newest."""
    folders = step_folders(run)
    for folder in folders[:-1]:
        if folder != best and (folder not in folders[-keep:] or PENDING in folder.name):
            shutil.rmtree(folder)


def link_best(run: Path, folder: Path | None) -> None:
    """Point RUN/best to a checkpoint, in one step; None removes it."""
    link = run / "best"
    if folder is None:
        link.unlink(missing_ok=True)
        return
    temporary = run / "best.tmp"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(folder.relative_to(run))
    temporary.replace(link)


def weights_folder(name: str | Path) -> Path:
    """Where the weights of a run, a checkpoint or a saved model are: NAME/best, else a run's newest whole checkpoint,
    else NAME itself.

    Raises:
        UserError: no such folder.
    """
    folder = Path(name)
    if not folder.is_dir():
        raise UserError(f"no checkpoint folder {folder}")
    if (folder / "best").is_dir():
        return folder / "best"
    return next((step for step in reversed(step_folders(folder)) if problem_of(step) is None), folder)


def whole_weights(model: nn.Module, keep: bool, copy: bool = False) -> Tensors:
    """The model's tensors by name, tied ones being one tensor; every rank must call.

    Args:
        keep: False: only take part in gathering. copy: on the CPU, so that they no longer change.
    """
    named, found = model.state_dict(keep_vars=True), {}
    for tensor in named.values():
        if id(tensor) not in found:
            gathered = whole(tensor.detach())
            found[id(tensor)] = gathered.to("cpu", copy=True) if copy and keep else gathered if keep else None
    return {name: found[id(tensor)] for name, tensor in named.items()} if keep else {}


def save_weights(model: nn.Module, weights: Tensors, folder: Path) -> None:
    """`save_pretrained` where the model has it, else one safetensors file, of the `weights` of `model`."""
    if hasattr(model, "save_pretrained"):
        # under the names of the module: for some families Hugging Face writes those of their first checkpoints
        model.save_pretrained(folder, state_dict=weights, save_original_format=False)
        return
    first_names = {id(tensor): name for name, tensor in reversed(weights.items())}
    distinct = {name: weights[name].contiguous().clone() for name in first_names.values()}  # CUDA's RNNs share memory
    save_file(distinct, folder / "model.safetensors", metadata={"format": "pt"})


def read(path: Path, load: Callable[[Path], Any]) -> Any:
    """What `load`, which must execute nothing, makes of a file of a checkpoint.

    Raises:
        UserError: the file is damaged or holds something else; the message names it.
    """
    try:
        return load(path)
    except (pickle.UnpicklingError, SafetensorError, RuntimeError, EOFError, ValueError) as error:
        raise UserError(
            f"{path} is damaged or holds something else ({type(error).__name__}); move {path.parent} away to go on "
            "from the checkpoint before"
        ) from error


def load_weights(model: nn.Module, folder: Path) -> None:
    """Load the safetensors of a folder into a model of the same architecture.

    Raises:
        UserError: there are none, or names or shapes differ; the message gives the first ones.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(f"no weights (*.safetensors) in {folder}")
    weights = {name: tensor for file in files for name, tensor in read(file, load_file).items()}
    own = model.state_dict(keep_vars=True)  # tied tensors are one object
    loaded = {id(own[name]) for name in weights.keys() & own.keys()}
    missing = [name for name, tensor in own.items() if name not in weights and id(tensor) not in loaded]
    extra = sorted(weights.keys() - own.keys())
    shapes = [
        f"{name} {tuple(weights[name].shape)} instead of {tuple(own[name].shape)}"
        for name in sorted(weights.keys() & own.keys())
        if weights[name].shape != own[name].shape
    ]
    if missing or extra or shapes:
        found = [f"{title}: {', '.join(names[:3])}" for title, names in
                 (("missing", missing), ("unexpected", extra), ("shapes", shapes)) if names]  # fmt: skip
        raise UserError(f"{folder} holds another architecture ({'; '.join(found)})")
    model.load_state_dict({name: split_like(tensor, own[name]) for name, tensor in weights.items()}, strict=False)


def rng_state() -> dict[str, Any]:
    """State of all random generators of this process, loadable with `weights_only=True`."""
    kind, keys, *rest = np.random.get_state()
    state = {"python": random.getstate(), "numpy": [kind, keys.tolist(), *rest], "torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
