"""Options of the model on a command line, and the model that they describe."""

from dataclasses import dataclass, field

from transformers import AutoConfig, PreTrainedTokenizerBase

from .modeling_armt import ArmtForCausalLM


def option(default, help: str):
    """A dataclass field with the text that `--help` shows."""
    return field(default=default, metadata={"help": help})


@dataclass
class ModelArgs:
    """The backbone and the memory around it."""

    from_pretrained: str | None = option(None, "backbone with its weights: hub name or local folder")
    model_cfg: str | None = option(None, "backbone with random weights: configuration file, see configs/models")
    model_cpt: str | None = option(None, "run folder or checkpoint of an ARMT whose weights to start from")
    num_mem_tokens: int = option(16, "memory tokens behind every segment; 0: no memory")
    d_mem: int = option(64, "width of keys and queries before the feature map")
    nu: int = option(3, "order of the DPFP feature map")
    memory_layers: list[int] | None = option(None, "layers that carry a memory, from 0; default: all")
    no_correction: bool = option(False, "write without gamma, the correction of the normaliser")
    segment_alignment: str = option("left", "where the short segment is: left (last), right (first), center (spread)")
    k2: int = option(-1, "number of last segments that gradients reach; -1: all")
    freeze_model_weights: bool = option(False, "train the memory only, not the backbone")


def build_model(args: ModelArgs, segment_size: int, tokenizer: PreTrainedTokenizerBase) -> ArmtForCausalLM:
    """The model of some options, without the weights of `model_cpt`.

    Args:
        tokenizer: a backbone with random weights gets its number of embeddings and its special tokens.

    Raises:
        ValueError: options that exclude each other, or a backbone that does not fit.
        OSError: no such backbone.
    """
    if (args.from_pretrained is None) == (args.model_cfg is None):
        raise ValueError("give either from_pretrained or model_cfg: the backbone of the model")
    backbone = args.from_pretrained
    if backbone is None:
        backbone = AutoConfig.from_pretrained(args.model_cfg)
        backbone.vocab_size = len(tokenizer)
        for token in ("bos_token_id", "eos_token_id", "pad_token_id"):
            setattr(backbone, token, getattr(tokenizer, token))
    model = ArmtForCausalLM.from_backbone(
        backbone,
        segment_size=segment_size,
        num_mem_tokens=args.num_mem_tokens,
        d_mem=args.d_mem,
        nu=args.nu,
        memory_layers=args.memory_layers,
        use_correction=not args.no_correction,
        segment_alignment=args.segment_alignment,
        bptt_depth=None if args.k2 == -1 else args.k2,
    )
    if model.config.vocab_size < len(tokenizer):
        sizes = f"the tokenizer has {len(tokenizer)} tokens, the backbone {model.config.vocab_size} embeddings"
        raise ValueError(f"{sizes}: give the backbone's own tokenizer")
    if args.freeze_model_weights:
        model.freeze_backbone()
    return model
