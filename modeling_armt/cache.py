"""What generation carries from token to token: the memory, and the keys and values of the open segment.

Rows of a batch may be at different places of their open segments. The key-value cache has a column for each position;
the columns of a row are the last ones, standing together, so that columns are as far apart as positions.

Shapes: B batch, C columns of the key-value cache.
"""

import torch
from torch import Tensor
from transformers import DynamicCache

from .state import RecurrentState


class ArmtCache:
    """The memory and the open segment of every row; `cache` of the recurrent models.

    Attributes:
        state: memory of the closed segments.
        used: (B,) long on the CPU, columns of the row's open segment; 0: the row has none.
        columns: C. keys_values: of the open segments, one entry a layer.
        input_length: columns of the input that were read, padding included.
    """

    is_compileable = is_croppable = False  # what Hugging Face's generation asks of a cache
    is_linear = (False,)  # of its layers: a prompt is cut to what the cache has not read

    def __init__(self, state: RecurrentState):
        self.state = state
        self.used = torch.zeros(state.batch_size, dtype=torch.long)
        self.columns = 0
        self.keys_values = DynamicCache()
        self.input_length = 0

    def get_seq_length(self) -> int:
        """Input columns that were read: what a Hugging Face cache calls its length."""
        return self.input_length

    def mask(self, lengths: Tensor, added: int) -> Tensor | None:
        """(B, C + added) bool on the CPU: the columns of the open segments when `lengths` (B,) more tokens of each row
        stand at the start of `added` new columns; None: all."""
        new = torch.arange(added) < lengths.unsqueeze(1)
        mask = torch.cat((self._open_columns(), new), dim=1)
        return None if bool(mask.all()) else mask

    def append(self, lengths: Tensor, added: int) -> None:
        """Count `added` columns that the layers have appended, of which the first `lengths` (B,) are the row's."""
        mask = self.mask(lengths, added)
        self.columns += added
        self.used = self.used + lengths
        if mask is not None:
            self._compact(mask)

    def drop_last(self, columns: int) -> None:
        """Forget the last columns, which no row counts."""
        self.keys_values.crop(-columns)

    def close(self, rows: Tensor, state: RecurrentState) -> None:
        """Forget the open segments of `rows` (B,) bool on the CPU, which `state` holds now."""
        self.state = state
        self.used = self.used.masked_fill(rows, 0)
        self._compact(self._open_columns())

    def _open_columns(self) -> Tensor:
        """(B, C) bool: the columns of each row's open segment."""
        return torch.arange(self.columns) >= self.columns - self.used.unsqueeze(1)

    def _compact(self, mask: Tensor) -> None:
        """Move the columns of `mask` (B, C) to the right end of each row, and drop those that no row uses."""
        size = int(self.used.max())
        if not size:
            self.keys_values = DynamicCache()
        else:
            order = mask.int().argsort(dim=1, stable=True)[:, -size:]
            for layer in self.keys_values.layers:
                index = order.to(layer.keys.device)[:, None, :, None]
                heads, width = layer.keys.shape[1], layer.keys.shape[3]
                layer.keys = layer.keys.gather(2, index.expand(-1, heads, -1, width))
                layer.values = layer.values.gather(2, index.expand(-1, heads, -1, layer.values.shape[3]))
        self.columns = size

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Row i goes on with what row `beam_idx[i]` has read (beam search)."""
        self.state = self.state.select(beam_idx)
        self.used = self.used[beam_idx.cpu()]
        self.keys_values.reorder_cache(beam_idx)
