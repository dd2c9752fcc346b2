"""What one layer's memory does, written down segment by segment by a forward hook on its `ArmtLayer`.

Shapes: T text tokens of a segment, M memory tokens, n of the question among the T, K features, D model width.
"""

from collections import defaultdict

import torch
import torch.nn.functional as F
from torch import Tensor

from ..associative import EPSILON, dpfp, new_share
from ..associative import read as read_memory
from ..layer import ArmtLayer
from .measures import Write, effective_rank, source_shares
from .report import LayerReport


class LayerRecord:
    """A forward hook: call it after every pass of the layer over a segment of one text.

    What it keeps does not grow with the text, but for numbers, and for the writes from `first_source` on.

    Args:
        number: of the layer. features: K.
        asking: of each segment, how many of its last text tokens belong to the question.
        first_source: index of the first segment whose share of the reads is told apart.
    """

    def __init__(self, number: int, features: int, asking: list[int], first_source: int):
        self.number, self.asking, self.first_source = number, asking, first_source
        self.columns: dict[str, list[float]] = defaultdict(list)
        self.gram = torch.zeros(features, features, dtype=torch.float64)
        self.used = torch.zeros(features, dtype=torch.bool)
        self.rows: list[Tensor] = []
        self.reads: list[Tensor] = []
        self.writes: list[Write] = []
        self.A_before: Tensor | None = None

    def __call__(self, layer: ArmtLayer, inputs: tuple, outputs: tuple) -> None:
        hidden, memory, _, num_written, _ = inputs
        index = len(self.columns["norm_A"])
        after, (A, z) = outputs
        if not (A.isfinite().all() and z.isfinite().all()):
            raise ValueError(f"the memory of layer {self.number} is not finite after segment {index + 1} of the text")
        self.columns["norm_A"].append(A.norm().item())
        self.columns["norm_z"].append(z.norm().item())
        if index == self.first_source:
            self.A_before = torch.zeros_like(A[0]) if memory is None else memory[0][0]
        self._see_reads(layer, hidden[:, :-num_written], memory, index)
        self._see_write(layer, after[:, -num_written:], memory, index)

    def _see_reads(self, layer: ArmtLayer, text: Tensor, memory: tuple | None, index: int) -> None:
        queries = dpfp(F.linear(text, layer.W_q).float(), layer.nu)
        rows, reads = torch.zeros_like(queries), torch.zeros_like(text, dtype=torch.float32)
        if memory is not None:
            rows = queries / (queries @ memory[1].unsqueeze(-1) + EPSILON)
            reads = read_memory(*memory, queries)
        sizes = text.float().norm(dim=-1).clamp(min=1e-30)
        self.columns["read_share"].append((reads.norm(dim=-1) / sizes).mean().item())
        if index >= self.first_source:
            start = text.shape[1] - self.asking[index]
            # copies: a view, even of nothing, would keep the whole segment
            self.rows.append(rows[0, start:].to("cpu", copy=True))
            self.reads.append(reads[0, start:].to("cpu", copy=True))

    def _see_write(self, layer: ArmtLayer, outputs: Tensor, memory: tuple | None, index: int) -> None:
        keys = dpfp(F.linear(outputs, layer.W_k).float(), layer.nu)
        values = F.linear(outputs, layer.W_v).float()
        beta = F.linear(outputs, layer.W_b, layer.bias_b).float().sigmoid()
        overlap, gamma = torch.full_like(beta, float("inf")), torch.ones_like(beta)
        if memory is not None:
            overlap = keys @ memory[1].unsqueeze(-1) + EPSILON
            if layer.use_correction:
                gamma = new_share(keys, overlap)
        for name, value in (("beta", beta), ("gamma", gamma)):
            for kind in ("mean", "min", "max"):
                self.columns[f"{name}_{kind}"].append(getattr(value, kind)().item())
        keys = keys[0].cpu()
        unit = F.normalize(keys.double(), dim=-1)
        self.gram += unit.T @ unit
        self.used |= (keys > 0).any(0)
        self.columns["effective_rank"].append(effective_rank(self.gram))
        self.columns["features_used"].append(self.used.double().mean().item())
        if index >= self.first_source:
            self.writes.append(Write(keys, values[0].cpu(), beta[0, :, 0].cpu(), overlap[0, :, 0].cpu()))

    def report(self) -> LayerReport:
        sources, before = source_shares(self.rows, self.reads, self.writes, self.A_before.cpu())
        return LayerReport(layer=self.number, **self.columns, sources=sources, source_before=before)
