"""Another function in the place of torch's fused attention, whatever the family calls it from."""

from abc import abstractmethod

import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class AttentionMode(TorchFunctionMode):
    """A context in which `F.scaled_dot_product_attention` is `attend`, which may call torch's own."""

    @abstractmethod
    def attend(self, *args, **options) -> Tensor:
        """Takes what `F.scaled_dot_product_attention` takes."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        return (self.attend if function is F.scaled_dot_product_attention else function)(*args, **(kwargs or {}))
