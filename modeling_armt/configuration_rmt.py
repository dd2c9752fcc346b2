"""Configuration of the Recurrent Memory Transformer."""

from .configuration_base import RecurrentConfig


class RmtConfig(RecurrentConfig):
    """Options of `RmtForCausalLM`: `num_mem_tokens` stand before every segment, to be read, and as many behind it."""

    model_type = "rmt"
