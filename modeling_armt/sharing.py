"""What ties a model to files that others read: its fingerprint in saved memories, its code in saved folders."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from .modeling_base import RecurrentModel

PACKAGE = Path(__file__).parent
AUTO_CLASSES = ("AutoModelForCausalLM", "AutoModel")


def fingerprint(model: RecurrentModel) -> dict[str, str]:
    """Digests of the architecture (shapes of parameters and state) and of the memory's weights, rounded to bfloat16.

    Two models that differ in either cannot read each other's memory. The type of the weights does not matter.
    """
    shapes = {name: list(parameter.shape) for name, parameter in model.named_parameters() if "lora_" not in name}
    state = [list(tensor.shape) for tensor in model.empty_state(1).unbind()]
    architecture = json.dumps([type(model).__name__, model.config.backbone_config.model_type, shapes, state])
    weights = hashlib.sha256()
    for parameter in model.memory_parameters():
        weights.update(parameter.detach().to("cpu", torch.bfloat16).contiguous().view(torch.uint8).numpy().tobytes())
    return {
        "architecture": hashlib.sha256(architecture.encode()).hexdigest()[:16],
        "memory_weights": weights.hexdigest()[:16],
    }


def save_code(model: RecurrentModel, folder: str | Path) -> None:
    """Write the modules that the model needs into `folder`, and name its classes in its configuration.

    Hugging Face loads code from a flat folder: `backbones/rotary.py` becomes `backbones_rotary.py`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    classes = {"AutoConfig": type(model.config)} | dict.fromkeys(AUTO_CLASSES, type(model))
    model.config.auto_map = {
        auto: f"{kind.__module__.rpartition('.')[2]}.{kind.__name__}" for auto, kind in classes.items()
    }
    todo, done = [(kind.__module__.rpartition(".")[2],) for kind in classes.values()], set()
    while todo:
        module = todo.pop()
        if module in done:
            continue
        done.add(module)
        text, needed = _flatten(module)
        (folder / f"{'_'.join(module)}.py").write_text(text, encoding="utf-8")
        todo += needed


Module = tuple[str, ...]  # ("backbones", "rotary")


def _flatten(module: Module) -> tuple[str, list[Module]]:
    """The source of a module with its relative imports flat, and the modules that it imports."""
    path = PACKAGE.joinpath(*module)
    inside = path if path.is_dir() else path.parent
    source = inside / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    needed: list[Module] = []

    def flat(match: re.Match) -> str:
        indent, dots, name = match.groups()
        start = inside
        for _ in dots[1:]:
            start = start.parent
        needed.append((*start.relative_to(PACKAGE).parts, *name.split(".")))
        return f"{indent}from .{'_'.join(needed[-1])} import"

    return re.sub(r"^([ ]*)from (\.+)(\w[\w.]*) import", flat, source.read_text(encoding="utf-8"), flags=re.M), needed
