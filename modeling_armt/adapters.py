"""LoRA on the backbone inside, trained beside the memory.

model = ArmtForCausalLM.from_backbone("gpt2", lora={"r": 8}, segment_size=512)
...                                     # train
save_adapter(model, "my-adapter")       # a few MB: LoRA and memory
python -m modeling_armt.adapters merge my-adapter --output my-armt      # a plain model
"""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

if TYPE_CHECKING:
    from .modeling_base import RecurrentModel

WEIGHTS = "adapter_model.safetensors"


def _peft():
    """The optional package, by name: a folder with this code must load where it is not installed."""
    try:
        return importlib.import_module("peft")
    except ImportError as error:
        raise ImportError("LoRA needs the package peft: pip install peft") from error


def add_lora(backbone: PreTrainedModel, options: dict) -> None:
    """Put LoRA layers into a backbone, in place, and freeze its own weights; `options`: of `peft.LoraConfig`."""
    peft = _peft()
    peft.inject_adapter_in_model(peft.LoraConfig(**options), backbone)


def adapter_tensors(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """What training changes while the backbone is frozen: the memory and the LoRA layers."""
    return {name: tensor for name, tensor in state_dict.items() if not name.startswith("backbone.") or "lora_" in name}


def save_adapter(model: RecurrentModel, folder: str | Path, state_dict: dict[str, Tensor] | None = None) -> None:
    """Write the memory, the LoRA layers and the configuration; the backbone stays where it came from.

    Args:
        state_dict: the model's tensors, where it does not hold them whole.
    """
    tensors = adapter_tensors(model.state_dict() if state_dict is None else state_dict)
    folder = Path(folder)
    model.config.save_pretrained(folder)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS)


def load_adapter(folder: str | Path, backbone: PreTrainedModel | str | None = None) -> RecurrentModel:
    """The model of `save_adapter`.

    Args:
        backbone: the model that was wrapped, its folder or its hub name; None: where it came from.

    Raises:
        ValueError: no adapter in the folder, an unknown origin of the backbone, or names that do not fit.
    """
    folder = Path(folder)
    if not (folder / WEIGHTS).exists():
        raise ValueError(f"no {WEIGHTS} in {folder}: give a folder of save_adapter")
    config = AutoConfig.from_pretrained(folder)
    source = backbone or config.backbone_name
    if not source:
        raise ValueError(f"{folder} does not say where its backbone came from: give the backbone")
    if not isinstance(source, PreTrainedModel):
        source = AutoModelForCausalLM.from_pretrained(source)
    model_class = AutoModelForCausalLM._model_mapping[type(config)]
    model = model_class(config, source)
    tensors = load_file(folder / WEIGHTS)
    differing = tensors.keys() ^ adapter_tensors(model.state_dict()).keys()
    if differing:
        raise ValueError(f"{folder} and its configuration differ in {', '.join(sorted(differing)[:3])}")
    model.load_state_dict(tensors, strict=False)
    return model


def merge_lora(model: RecurrentModel) -> None:
    """Add the LoRA layers to the weights that they adapt, in place: the model is a plain one afterwards."""
    layer_type = importlib.import_module(f"{_peft().__name__}.tuners.tuners_utils").BaseTunerLayer
    for name, module in list(model.backbone.named_modules()):
        if isinstance(module, layer_type):
            module.merge()
            parent, _, own = name.rpartition(".")
            setattr(model.backbone.get_submodule(parent), own, module.get_base_layer())
    model.config.lora = None
    model.backbone.requires_grad_(True)


def trainable_table(model: nn.Module) -> str:
    """Numbers of parameters, by part, trained and in all."""
    parts: dict[str, list[int]] = {}
    for name, parameter in model.named_parameters():
        part = "LoRA" if "lora_" in name else name.split(".")[0].replace("_", " ")
        counts = parts.setdefault(part, [0, 0])
        counts[0] += parameter.numel() * parameter.requires_grad
        counts[1] += parameter.numel()
    parts["all"] = [sum(counts) for counts in zip(*parts.values())]
    rows = [f"  {part:<18}{trained:>15,}{total:>15,}" for part, (trained, total) in parts.items()]
    return "\n".join([f"  {'parameters':<18}{'trained':>15}{'all':>15}", *rows])


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    merge = commands.add_parser("merge", help="make a plain model of an adapter and its backbone")
    merge.add_argument("adapter", help="folder of save_adapter")
    merge.add_argument("--output", required=True, help="folder of the merged model")
    merge.add_argument("--backbone", help="folder or hub name of the backbone; default: where it came from")
    args = parser.parse_args(argv)
    try:
        if Path(args.output).exists():
            raise ValueError(f"{args.output} exists: give another --output")
        model = load_adapter(args.adapter, args.backbone)
        merge_lora(model)
        model.save_pretrained(args.output)
    except (ValueError, OSError) as error:
        parser.exit(2, f"error: {error}\n")
    print(f"merged into {args.output}")


if __name__ == "__main__":
    main()
