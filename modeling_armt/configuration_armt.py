"""Configuration of the Associative Recurrent Memory Transformer.

One `ArmtConfig` holds the configuration of the wrapped Hugging Face decoder (`backbone_config`) and every option of
the memory around it, so that a saved folder is complete.
"""

from typing import Any

from transformers import AutoConfig, PreTrainedConfig

ALIGNMENTS = ("left", "right", "center")

# The recurrence has no length limit, but tools such as lm-evaluation-harness cut their inputs to this attribute.
UNLIMITED_POSITIONS = 1 << 30


class ArmtConfig(PreTrainedConfig):
    """Options of `ArmtForCausalLM`.

    Args:
        backbone_config: configuration of the decoder inside, as an object or as its dictionary with `model_type`.
        segment_size: text tokens of a segment, without the memory tokens.
        num_mem_tokens: memory tokens appended to every segment; 0 switches the memory off.
        d_mem: width of keys and queries before the feature map (d in arXiv 2407.04841).
        nu: order of the DPFP feature map; a key has 2 * d_mem * nu features.
        use_correction: scale what is added to the normaliser z by gamma (equation 3); without it gamma is 1.
        segment_alignment: where the short segment goes: last (`left`), first (`right`), or spread evenly (`center`).
        memory_layers: layers of the backbone that carry a memory, ascending, from 0; None: all.
        bptt_depth: number of last segments that gradients reach through the memory; None: all.

    Raises:
        ValueError: an option is out of its range; the message gives the option and its value.
    """

    model_type = "armt"
    sub_configs = {"backbone_config": AutoConfig}

    backbone_config: Any = None
    segment_size: int = 512
    num_mem_tokens: int = 16
    d_mem: int = 64
    nu: int = 3
    use_correction: bool = True
    segment_alignment: str = "left"
    memory_layers: list[int] | None = None
    bptt_depth: int | None = None
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
        self._check_ranges()

    def _check_ranges(self):
        for name, least in (("segment_size", 1), ("num_mem_tokens", 0), ("d_mem", 1), ("nu", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if self.nu >= 2 * self.d_mem:
            raise ValueError(f"nu is {self.nu}; it must be below 2 * d_mem = {2 * self.d_mem}: rolls would repeat")
        if self.segment_alignment not in ALIGNMENTS:
            raise ValueError(f"segment_alignment is {self.segment_alignment!r}; choose one of {', '.join(ALIGNMENTS)}")
        if self.memory_layers is not None and self.backbone_config is not None:
            self._check_memory_layers(self.memory_layers)
        if self.bptt_depth is not None and self.bptt_depth < 1:
            raise ValueError(f"bptt_depth is {self.bptt_depth}; it must be at least 1, or None for full depth")

    def _check_memory_layers(self, chosen: list[int]):
        if not chosen:
            raise ValueError("memory_layers is empty; set num_mem_tokens to 0 to switch the memory off")
        if chosen != sorted(set(chosen)) or not all(0 <= layer < self.num_hidden_layers for layer in chosen):
            raise ValueError(f"memory_layers is {chosen}; give ascending numbers below {self.num_hidden_layers}")

    @property
    def num_features(self) -> int:
        """K: features of a key after DPFP."""
        return 2 * self.d_mem * self.nu

    @property
    def layers_with_memory(self) -> list[int]:
        return list(range(self.num_hidden_layers)) if self.memory_layers is None else self.memory_layers

    @property
    def hidden_size(self) -> int:
        return self.backbone_config.hidden_size

    @property
    def num_hidden_layers(self) -> int:
        return self.backbone_config.num_hidden_layers

    @property
    def vocab_size(self) -> int:
        return self.backbone_config.vocab_size
