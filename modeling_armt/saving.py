"""What ties a model to files that others read: weights and code in saved folders, its fingerprint in saved memories."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch

if TYPE_CHECKING:
    from .modeling_base import RecurrentModel

PACKAGE = Path(__file__).parent
AUTO_CLASSES = ("AutoModelForCausalLM", "AutoModel")


class RecurrentSaving:
    """Saving and loading, where it differs from Hugging Face's."""

    saves_code: ClassVar[bool] = False

    @classmethod
    def from_pretrained(cls, *args, output_loading_info: bool = False, ignore_mismatched_sizes: bool = False, **kwargs):
        """As in Hugging Face, but a folder that lacks weights of the model, or has others, is refused.

        Raises:
            ValueError: names are missing or unexpected, unless `ignore_mismatched_sizes`; the message gives the first.
        """
        model, info = super().from_pretrained(
            *args, output_loading_info=True, ignore_mismatched_sizes=ignore_mismatched_sizes, **kwargs
        )
        found = {kind: sorted(info[f"{kind}_keys"])[:3] for kind in ("missing", "unexpected") if info[f"{kind}_keys"]}
        if found and not ignore_mismatched_sizes:
            problems = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in found.items())
            raise ValueError(f"the weights are of another model ({problems})")
        return (model, info) if output_loading_info else model

    def save_pretrained(self, save_directory: str | Path, **kwargs) -> None:
        """As in Hugging Face; after `register_for_auto_class()` with the code that loads the folder elsewhere."""
        if type(self).saves_code:
            save_code(self, Path(save_directory))
        super().save_pretrained(save_directory, **kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class: type | str = "AutoModelForCausalLM") -> None:
        """From now on, saved folders carry their code, for `from_pretrained(..., trust_remote_code=True)`."""
        name = auto_class if isinstance(auto_class, str) else auto_class.__name__
        if name not in AUTO_CLASSES:
            raise ValueError(f"{cls.__name__} fits {' and '.join(AUTO_CLASSES)}, not {name}")
        cls.saves_code = True

    def fingerprint(self: RecurrentModel) -> dict[str, str]:
        """Digests of the architecture (shapes of parameters and state) and of the memory's weights, for saved memories.

        Two models that differ in either cannot read each other's memory. The type of the weights does not matter.
        """
        shapes = {name: list(parameter.shape) for name, parameter in self.named_parameters() if "lora_" not in name}
        state = [list(tensor.shape) for tensor in self.empty_state(1, device="meta").unbind()]
        architecture = json.dumps([type(self).__name__, self.config.backbone_config.model_type, shapes, state])
        weights = hashlib.sha256()
        for parameter in self.memory_parameters():
            rounded = parameter.detach().to("cpu", torch.bfloat16).contiguous()
            weights.update(rounded.view(torch.uint8).numpy().tobytes())
        return {
            "architecture": hashlib.sha256(architecture.encode()).hexdigest()[:16],
            "memory_weights": weights.hexdigest()[:16],
        }


def save_code(model: RecurrentModel, folder: Path) -> None:
    """Write the modules that the model needs into `folder`, and name its classes in its configuration.

    Hugging Face loads code from a flat folder: `backbones/rotary.py` becomes `backbones_rotary.py`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    classes = {"AutoConfig": type(model.config)} | dict.fromkeys(AUTO_CLASSES, type(model))
    model.config.auto_map = {
        auto: f"{kind.__module__.rpartition('.')[2]}.{kind.__name__}" for auto, kind in classes.items()
    }
    todo: list[Module] = [(kind.__module__.rpartition(".")[2],) for kind in classes.values()]
    done: set[Module] = set()
    while todo:
        module = todo.pop()
        if module not in done:
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
