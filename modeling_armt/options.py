"""Options of the model on a command line, and the model that they describe."""

from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from .adapters import save_adapter, trainable_table
from .modeling_armt import ArmtForCausalLM
from .modeling_base import RecurrentModel
from .modeling_rmt import RmtForCausalLM
from .whole import ReadWhole, read_whole


def option(default, help: str):
    """A dataclass field with the text that `--help` shows."""
    return field(default=default, metadata={"help": help})


MODEL_TYPES = ("armt", "rmt", "none", "hf")
MEMORY_ONLY = ("memory_layers", "no_correction", "sharpen_gates")
EXECUTION = ("executor", "compile")
SEGMENTS_ONLY = ("segment_checkpointing", "freeze_model_weights", "lora_r")


@dataclass
class ModelArgs:
    """The backbone and the memory around it."""

    model_type: str = option(
        "armt",
        "armt; rmt: memory tokens alone; none: segments are read without any memory; hf: the backbone, read whole",
    )
    from_pretrained: str | None = option(None, "backbone with its weights: hub name or local folder")
    model_cfg: str | None = option(None, "backbone with random weights: configuration file, see configs/models")
    model_cpt: str | None = option(None, "run folder or checkpoint of a model whose weights to start from")
    sharpen_gates: float = option(
        1.0, "ARMT: multiply the logits of model_cpt's write gates once, at the start: weak writes add up on long texts"
    )
    num_mem_tokens: int = option(16, "memory tokens of a segment; 0: no memory")
    memory_positions: str = option("follow", "memory tokens take the backbone's positions, or have their own: reserved")
    d_mem: int = option(64, "ARMT: width of keys and queries before the feature map")
    nu: int = option(3, "ARMT: order of the DPFP feature map")
    memory_layers: list[int] | None = option(None, "ARMT: layers that carry a memory, from 0; default: all")
    no_correction: bool = option(False, "ARMT: write without gamma, the correction of the normaliser")
    segment_alignment: str = option("left", "where the short segment is: left (last), right (first), center (spread)")
    k2: int = option(-1, "number of last segments that gradients reach; -1: all")
    segment_checkpointing: bool = option(False, "keep activations of one segment at a time; a third more compute")
    executor: str = option(
        "sequential", "order of layers and segments: sequential, diagonal, or auto: the faster, measured once a shape"
    )
    compile: bool = option(False, "run full segments by torch.compile, which takes a minute at first")
    freeze_model_weights: bool = option(False, "train the memory only, not the backbone")
    lora_r: int = option(0, "rank of LoRA layers in the frozen backbone, trained beside the memory; 0: none")
    lora_alpha: int = option(16, "LoRA layers are scaled by lora_alpha / lora_r")
    lora_dropout: float = option(0.0, "dropout before LoRA layers, 0 to 1")
    lora_target_modules: list[str] | None = option(None, "names of the adapted modules; default: peft's for the family")


def model_options(args: ModelArgs, segment_size: int) -> dict:
    """Fields of the model's configuration.

    Raises:
        ValueError: an unknown model_type, or an option that the chosen one does not have.
    """
    if args.model_type not in MODEL_TYPES:
        raise ValueError(f"model_type is {args.model_type!r}; choose one of {', '.join(MODEL_TYPES)}")
    options = {
        "segment_size": segment_size,
        "num_mem_tokens": 0 if args.model_type == "none" else args.num_mem_tokens,
        "memory_positions": args.memory_positions,
        "segment_alignment": args.segment_alignment,
        "bptt_depth": None if args.k2 == -1 else args.k2,
        "segment_checkpointing": args.segment_checkpointing,
        "lora": lora_options(args),
    }
    if not 0 < args.sharpen_gates < float("inf"):
        raise ValueError(f"sharpen_gates is {args.sharpen_gates}; give a number above 0")
    own = {"armt": MEMORY_ONLY + EXECUTION, "none": EXECUTION}
    given = [name for name in own["armt"] if getattr(args, name) != getattr(ModelArgs, name)]
    foreign = [name for name in given if name not in own.get(args.model_type, ())]
    if foreign:
        raise ValueError(f"{', '.join(foreign)}: not for model_type {args.model_type}, but for armt")
    if args.model_type in own:
        options["executor"] = args.executor
    if args.model_type == "armt":
        options |= {"d_mem": args.d_mem, "nu": args.nu, "memory_layers": args.memory_layers}
        options["use_correction"] = not args.no_correction
    if args.model_type == "hf" and any(getattr(args, name) for name in SEGMENTS_ONLY):
        raise ValueError(f"{', '.join(SEGMENTS_ONLY)} belong to models of segments, not to model_type hf")
    return options


def lora_options(args: ModelArgs) -> dict | None:
    if not args.lora_r:
        return None
    options = {"r": args.lora_r, "lora_alpha": args.lora_alpha, "lora_dropout": args.lora_dropout}
    return options | ({"target_modules": args.lora_target_modules} if args.lora_target_modules else {})


def build_model(args: ModelArgs, segment_size: int, tokenizer: PreTrainedTokenizerBase) -> RecurrentModel | ReadWhole:
    """The model of some options, without the weights of `model_cpt`.

    Args:
        tokenizer: a backbone with random weights gets its number of embeddings and its special tokens.

    Raises:
        ValueError: options that exclude each other, or a backbone that does not fit.
        OSError: no such backbone.
        ImportError: LoRA without peft.
    """
    if (args.from_pretrained is None) == (args.model_cfg is None):
        raise ValueError("give either from_pretrained or model_cfg: the backbone of the model")
    options = model_options(args, segment_size)
    backbone = args.from_pretrained
    if backbone is None:
        if args.model_cfg.endswith(".json") and not Path(args.model_cfg).is_file():  # else a name on the hub
            raise ValueError(f"model_cfg: no file {args.model_cfg} in {Path.cwd()}")
        backbone = AutoConfig.from_pretrained(args.model_cfg)
        backbone.vocab_size = len(tokenizer)
        for token in ("bos_token_id", "eos_token_id", "pad_token_id"):
            setattr(backbone, token, getattr(tokenizer, token))
    if args.model_type == "hf":
        model = read_whole(backbone)
    else:
        model = (RmtForCausalLM if args.model_type == "rmt" else ArmtForCausalLM).from_backbone(backbone, **options)
    if model.config.vocab_size < len(tokenizer):
        sizes = f"the tokenizer has {len(tokenizer)} tokens, the backbone {model.config.vocab_size} embeddings"
        raise ValueError(f"{sizes}: give the backbone's own tokenizer")
    if args.freeze_model_weights:
        if args.lora_r:
            raise ValueError("freeze_model_weights freezes all of the backbone, lora_r trains a part: give one")
        model.freeze_backbone()
    if args.compile:
        model.compile_cells()
    return model


def adapt_weights(model: PreTrainedModel, args: ModelArgs) -> None:
    """What the options change in the weights that a run starts from.

    Raises:
        ValueError: `sharpen_gates` without `model_cpt`.
    """
    if args.sharpen_gates != 1:
        if args.model_cpt is None:
            raise ValueError("sharpen_gates changes the trained gates of a model: give --model_cpt")
        model.sharpen_gates(args.sharpen_gates)


def describe(model: PreTrainedModel) -> str:
    """A table of what is trained."""
    return trainable_table(model)


def save_parts(model: PreTrainedModel, run: Path, weights: dict[str, Tensor]) -> None:
    """With LoRA: RUN/adapter, the adapter and the memory alone."""
    if getattr(model.config, "lora", None) is not None:
        save_adapter(model, run / "adapter", weights)
