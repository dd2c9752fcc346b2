"""Any Hugging Face causal language model, read whole: the baselines without segments, behind the interface that the
recurrent models have for training.

    model = read_whole(AutoConfig.from_pretrained("configs/models/mamba-4x128.json"))
    output = model(input_ids, labels=labels, output_target_logits=True)

Shapes: B batch, N input tokens, V vocabulary, n labelled positions.
"""

from typing import Any

from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from .loss import cross_entropy, target_positions
from .modeling_base import ArmtOutput


class ReadWhole:
    """In front of a class of causal language models; saved folders are those of the class behind it."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        output_target_logits: bool = False,
        output_memory_state: bool = False,
        **options: Any,
    ) -> Any:
        """As in Hugging Face without labels.

        Args:
            input_ids: (B, N). attention_mask: (B, N), 0 on padding. labels: (B, N), -100 is ignored, shifted inside.
                The head runs at labelled positions only.
            output_target_logits: return the logits (n, V) that predict `labels[:, 1:] != -100`, in row-major order.
            output_memory_state: there is none.
        """
        if labels is None:
            return super().forward(input_ids=input_ids, attention_mask=attention_mask, **options)
        targets = target_positions(labels, attention_mask)
        chosen = targets.to(labels.device)
        hook = self.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: (inputs[0][chosen],))
        try:
            logits = super().forward(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits
        finally:
            hook.remove()
        next_tokens = labels[:, 1:][chosen[:, :-1]]
        loss = cross_entropy(logits, next_tokens) / max(len(next_tokens), 1)
        return ArmtOutput(loss=loss, target_logits=logits if output_target_logits else None)

    def parameter_groups(self, memory_lr: float | None = None, memory_weight_decay: float = 0.0) -> list[dict]:
        """Groups for an optimizer: one; no parameter is a memory's."""
        return [{"params": [parameter for parameter in self.parameters() if parameter.requires_grad]}]


def read_whole(backbone: PreTrainedConfig | str) -> PreTrainedModel:
    """A causal language model of a configuration (random weights), a local folder or a hub name.

    Raises:
        ValueError: the family has no causal language model. OSError: no such folder or name.
    """
    config = AutoConfig.from_pretrained(backbone) if isinstance(backbone, str) else backbone
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise ValueError(f"{config.model_type} has no causal language model")
    family = AutoModelForCausalLM._model_mapping[type(config)]
    kind = type(family.__name__, (ReadWhole, family), {"__module__": family.__module__})
    return kind(config) if config is backbone else kind.from_pretrained(backbone)
