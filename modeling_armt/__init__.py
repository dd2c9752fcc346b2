"""Associative Recurrent Memory Transformer (arXiv 2407.04841) around Hugging Face decoders.

Importing the package registers `model_type="armt"` with `AutoConfig` and `AutoModelForCausalLM`.
"""

from transformers import AutoConfig, AutoModelForCausalLM

from .configuration_armt import ArmtConfig
from .modeling_armt import ArmtForCausalLM, ArmtOutput
from .state import MemoryState

AutoConfig.register(ArmtConfig.model_type, ArmtConfig, exist_ok=True)
AutoModelForCausalLM.register(ArmtConfig, ArmtForCausalLM, exist_ok=True)

__all__ = ["ArmtConfig", "ArmtForCausalLM", "ArmtOutput", "MemoryState"]
