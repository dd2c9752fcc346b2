"""Recurrent memory around Hugging Face decoders: ARMT (arXiv 2407.04841) and its baseline RMT (arXiv 2207.06881).

Importing the package registers `model_type` "armt" and "rmt" with Hugging Face's auto classes.
"""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from .cache import ArmtCache
from .configuration_armt import ArmtConfig
from .configuration_rmt import RmtConfig
from .modeling_armt import ArmtForCausalLM
from .modeling_base import ArmtOutput
from .modeling_rmt import RmtForCausalLM
from .state import MemoryState, TokenState

for config, model in ((ArmtConfig, ArmtForCausalLM), (RmtConfig, RmtForCausalLM)):
    AutoConfig.register(config.model_type, config, exist_ok=True)
    AutoModel.register(config, model, exist_ok=True)
    AutoModelForCausalLM.register(config, model, exist_ok=True)

__all__ = [
    "ArmtCache",
    "ArmtConfig",
    "ArmtForCausalLM",
    "ArmtOutput",
    "MemoryState",
    "RmtConfig",
    "RmtForCausalLM",
    "TokenState",
]
