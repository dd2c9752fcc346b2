"""Checkpoints of the published ARMT and RMT code, read into this project's folders.

    python -m modeling_armt.interchange import --weights pytorch_model.bin --backbone gpt2 --segment_size 512 \
        --output my-armt [--sample sample.safetensors]

Which of the two models it is, and the sizes of its memory, are read off the weights. `--sample` holds `input_ids`,
`logits` and perhaps `attention_mask` of the published model, which the imported one must reproduce.
"""

import argparse
import re
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig

from . import ArmtForCausalLM, RmtForCausalLM
from .modeling_base import RecurrentModel

TOLERANCE = 1e-4  # on logits, between two implementations in float32

# name of a part in the published code's layers -> name here
PARTS = {
    "W_mq.weight": "W_q",
    "W_mk.weight": "W_k",
    "W_mv.weight": "W_v",
    "W_mb.weight": "W_b",
    "W_mb.bias": "bias_b",
}
MEMORY_PART = re.compile(rf"model\..*\.(\d+)\.({'|'.join(map(re.escape, PARTS))})")
WRAPPED_LAYER = re.compile(r"(\.\d+)\.layer\.")


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a safetensors or torch file; nothing in it is executed.

    Raises:
        ValueError: there is no state dict in the file.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return load_file(path)
    weights = torch.load(path, map_location="cpu", weights_only=True)
    weights = weights.get("model_state_dict", weights) if isinstance(weights, dict) else None
    if not weights or not all(isinstance(tensor, Tensor) for tensor in weights.values()):
        raise ValueError(f"{path} holds no state dict: give the file with the model's weights")
    return weights


def our_name(name: str) -> str | None:
    """The name here of a tensor of the published code, or None."""
    name = name.removeprefix("memory_cell.")
    if name == "memory":
        return "memory_tokens"
    part = MEMORY_PART.fullmatch(name)
    if part:
        return f"memory_layers.{part[1]}.{PARTS[part[2]]}"
    if name.startswith("model."):
        return "backbone." + WRAPPED_LAYER.sub(r"\1.", name.removeprefix("model."))
    return None


def import_weights(weights: dict[str, Tensor], backbone: str, **options) -> tuple[RecurrentModel, list[str]]:
    """Build the model of a published checkpoint.

    Args:
        backbone: hub name, folder or configuration file of the decoder inside; its weights are in the checkpoint.
        options: fields of the model's configuration that weights do not tell: `segment_size`, `nu`, ...

    Returns:
        The model, and the names that it did not use.

    Raises:
        ValueError: names are missing, or shapes differ; the message gives the first ones.
    """
    renamed = {our_name(name): (name, tensor) for name, tensor in weights.items() if our_name(name)}
    if "memory_tokens" not in renamed:
        raise ValueError("the checkpoint has no 'memory' (nor 'memory_cell.memory'): it is not of ARMT or RMT")
    options["num_mem_tokens"] = len(renamed["memory_tokens"][1])
    layers = sorted(int(name.split(".")[1]) for name in renamed if name.endswith(".W_q"))
    if layers:
        options |= {"memory_layers": layers, "d_mem": len(renamed[f"memory_layers.{layers[0]}.W_q"][1])}
    else:
        options = {name: value for name, value in options.items() if name not in ("nu", "use_correction")}
    config = AutoConfig.from_pretrained(backbone)
    head = "backbone.lm_head.weight"  # tells the size of a vocabulary that was extended
    table = next((tensor for name, (_, tensor) in renamed.items() if name.endswith(("wte.weight", "embed_in.weight",
                  "embed_tokens.weight", "word_embeddings.weight", head)) and tensor.dim() == 2), None)  # fmt: skip
    if table is not None:
        config.vocab_size = len(table)
    model = (ArmtForCausalLM if layers else RmtForCausalLM).from_backbone(config, **options)
    own = model.state_dict()
    used = {name: tensor for name, (_, tensor) in renamed.items() if name in own}
    loaded = {own[name].data_ptr() for name in used}
    missing = [name for name, tensor in own.items() if name not in used and tensor.data_ptr() not in loaded]
    shapes = [f"{name} {tuple(tensor.shape)} instead of {tuple(own[name].shape)}" for name, tensor in used.items()
              if tensor.shape != own[name].shape]  # fmt: skip
    if missing or shapes:
        found = [
            f"{title}: {', '.join(names[:3])}" for title, names in (("missing", missing), ("shapes", shapes)) if names
        ]
        raise ValueError(f"the checkpoint does not fit the backbone {backbone} ({'; '.join(found)})")
    model.load_state_dict(used, strict=False)
    taken = {renamed[name][0] for name in used}
    return model.eval(), [name for name in weights if name not in taken]


@torch.no_grad()
def difference(model: RecurrentModel, sample: dict[str, Tensor]) -> float:
    """Largest difference of logits, over the tokens of `attention_mask`."""
    mask = sample.get("attention_mask")
    logits = model(sample["input_ids"], attention_mask=mask).logits
    error = (logits - sample["logits"]).abs().amax(-1)
    return (error if mask is None else error[mask.bool()]).max().item()


def parse(argv: list[str] | None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("import", help="make a folder of a published checkpoint")
    command.add_argument("--weights", required=True, help="pytorch_model.bin or a safetensors file")
    command.add_argument("--backbone", required=True, help="hub name, folder or configuration file of the decoder")
    command.add_argument("--segment_size", type=int, required=True, help="text tokens of a segment")
    command.add_argument("--segment_alignment", default="left", help="left, right or center; default: left")
    command.add_argument("--nu", type=int, default=3, help="order of the feature map (ARMT); default: 3")
    command.add_argument("--no_correction", action="store_true", help="the model was trained without gamma (ARMT)")
    command.add_argument("--sample", help="safetensors file with input_ids and logits to compare with")
    command.add_argument("--output", required=True, help="folder to write")
    return parser, parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    parser, args = parse(argv)
    try:
        if Path(args.output).exists():
            raise ValueError(f"{args.output} exists: give another --output")
        model, unused = import_weights(
            read_weights(args.weights), args.backbone, segment_size=args.segment_size, nu=args.nu,
            use_correction=not args.no_correction, segment_alignment=args.segment_alignment,
        )  # fmt: skip
        print(f"{type(model).__name__}, {model.num_parameters():,} parameters")
        print("not used: " + (", ".join(unused) or "nothing"))
        if args.sample:
            error = difference(model, load_file(args.sample))
            print(f"largest difference of logits: {error:.1e}")
            if not error <= TOLERANCE:
                raise ValueError(
                    f"logits differ by {error:.1e}, more than {TOLERANCE}: check segment_size, nu, backbone"
                )
        model.save_pretrained(args.output)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        parser.exit(2)
    print(f"written to {args.output}")


if __name__ == "__main__":
    main()
