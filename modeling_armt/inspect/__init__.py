"""Is the memory used? What every layer's memory does while a text is read, and where a question's reads come from.

    report = inspect_memory(model, input_ids)
    python -m modeling_armt.inspect MODEL_FOLDER --text book.txt --question "Where is John? GEN" --output memory-report

The forward pass knows nothing of this: PyTorch's hooks watch the memory layers while the segments are run in order.
"""

from .inspection import inspect_memory
from .report import LayerReport, MemoryReport

__all__ = ["LayerReport", "MemoryReport", "inspect_memory"]
