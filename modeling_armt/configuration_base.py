"""What the configurations of all recurrent models share.

A configuration holds that of the wrapped Hugging Face decoder (`backbone_config`) and every option of the memory around
it, so that a saved folder is complete.
"""

from typing import Any

from transformers import AutoConfig, PreTrainedConfig

ALIGNMENTS = ("left", "right", "center")
POSITIONS = ("follow", "reserved")

# The recurrence has no length limit, but tools such as lm-evaluation-harness cut their inputs to this attribute.
UNLIMITED_POSITIONS = 1 << 30


class RecurrentConfig(PreTrainedConfig):
    """Options of every recurrent model.

    Args:
        backbone_config: configuration of the decoder inside, as an object or as its dictionary with `model_type`.
        segment_size: text tokens of a segment, without the memory tokens.
        num_mem_tokens: memory tokens of a segment; 0 switches the memory off.
        memory_positions: `follow`: memory tokens take positions of the backbone like text; `reserved`: they have
            position embeddings of their own, for backbones whose positions are learned embeddings.
        segment_alignment: where the short segment goes: last (`left`), first (`right`), or spread evenly (`center`).
        bptt_depth: number of last segments that gradients reach through the memory; None: all. Alias: `k2`.
        segment_checkpointing: in training, keep only the memory at the borders of segments, and run each segment again
            in the backward pass: activations of one segment at a time, for a third more compute.
        backbone_name: hub name or folder that the backbone was loaded from.
        lora: fields of `peft.LoraConfig`: adapt the backbone inside, and freeze its own weights; None: no adapters.

    Raises:
        ValueError: an option is out of its range; the message gives the option and its value.
    """

    sub_configs = {"backbone_config": AutoConfig}
    attribute_map = {"k2": "bptt_depth"}
    keys_to_ignore_at_inference = ["memory_state", "cache"]  # by Hugging Face's Trainer in evaluation

    backbone_config: Any = None
    segment_size: int = 512
    num_mem_tokens: int = 16
    memory_positions: str = "follow"
    segment_alignment: str = "left"
    bptt_depth: int | None = None
    segment_checkpointing: bool = False
    backbone_name: str | None = None
    lora: dict | None = None
    max_position_embeddings: int = UNLIMITED_POSITIONS

    def __post_init__(self, **kwargs):
        if isinstance(self.backbone_config, dict):
            self.backbone_config = AutoConfig.for_model(**self.backbone_config)
        if self.backbone_config is not None:
            self.tie_word_embeddings = self.backbone_config.tie_word_embeddings
            # the base class sets its own choice of attention in every sub-configuration: take the backbone's
            kwargs.setdefault("attn_implementation", self.backbone_config._attn_implementation)
            for token in ("bos_token_id", "eos_token_id", "pad_token_id"):
                kwargs.setdefault(token, getattr(self.backbone_config, token, None))
        super().__post_init__(**kwargs)
        self.check_ranges()

    def check_ranges(self) -> None:
        """Raise `ValueError` for an option that is out of its range."""
        self._check_least("segment_size", 1)
        self._check_least("num_mem_tokens", 0)
        self._check_choice("memory_positions", POSITIONS)
        self._check_choice("segment_alignment", ALIGNMENTS)
        if self.bptt_depth is not None and self.bptt_depth < 1:
            raise ValueError(f"bptt_depth is {self.bptt_depth}; it must be at least 1, or None for full depth")

    def _check_least(self, name: str, least: int) -> None:
        if getattr(self, name) < least:
            raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")

    def _check_choice(self, name: str, choices: tuple[str, ...]) -> None:
        if getattr(self, name) not in choices:
            raise ValueError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(choices)}")

    @property
    def hidden_size(self) -> int:
        return self.backbone_config.hidden_size

    @property
    def num_hidden_layers(self) -> int:
        return self.backbone_config.num_hidden_layers

    @property
    def vocab_size(self) -> int:
        return self.backbone_config.vocab_size
