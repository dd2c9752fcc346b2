"""What the report computes from keys, values and gates: pure functions.

Where reads come from. A segment's write is linear in the memory before it (`associative.write`):

    A_s = A_{s-1} - sum_m beta_m k_m (k_m A_{s-1}) / overlap_m + sum_m beta_m k_m v_m

so A_S is a sum of what every segment wrote, each part worn down by the later writes. Keeping the parts would take S
matrices; a read is one row r = q / (q . z + eps) times A_S, and r can be taken back through the writes instead:

    what segment s adds to the read:   sum_m (r_s . k_m) beta_m v_m
    the row that reads A_{s-1}:        r_{s-1} = r_s - sum_m (r_s . k_m) beta_m / overlap_m k_m

with r_S = r. All segments' parts and r_0 A_0 add up to the read. This is the read of one layer alone: a value that a
segment wrote may itself hold what that segment had read.

Shapes: n reading tokens, M memory tokens, K features, D model width.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Write:
    """What one segment writes to one layer's memory.

    Attributes:
        keys: (M, K). values: (M, D). beta: (M,).
        overlap: (M,), k . z + eps with the z before; infinite where the memory was empty: nothing is subtracted.
    """

    keys: Tensor
    values: Tensor
    beta: Tensor
    overlap: Tensor


def contributions(rows: list[Tensor], writes: list[Write], A: Tensor) -> Iterator[Tensor]:
    """What each write adds to reads, from the last write to the first, and at last what comes from `A`.

    In float64: a key of small overlap makes a row large before it makes it small again.

    Args:
        rows: of each segment the rows (n, K) that read the memory before its write; n may be 0.
        writes: of the same segments. A: (K, D), the memory before the first of them.

    Yields:
        (n, D) for all rows of later segments, those of the last segment first.
    """
    reading = A.new_zeros(0, A.shape[0], dtype=torch.float64)
    for new_rows, write in zip(reversed(rows), reversed(writes)):
        keys = write.keys.double()
        hits = (reading @ keys.T) * write.beta.double()
        yield hits @ write.values.double()
        reading = torch.cat((reading - (hits / write.overlap.double()) @ keys, new_rows.double()))
    yield reading @ A.double()


def source_shares(rows: list[Tensor], reads: list[Tensor], writes: list[Write], A: Tensor) -> tuple[list[float], float]:
    """Shares of the reads (n, D) of each segment that come from each write, and from `A`; they add up to 1.

    A share is the part of a contribution that points along the read, over all tokens: sum c . read / sum |read|^2. It
    is negative where a contribution is outweighed by others. All are 0 where nothing is read.
    """
    whole = torch.cat(reads[::-1]).double()
    size = whole.square().sum().item()
    parts = [(part * whole[: len(part)]).sum().item() for part in contributions(rows, writes, A)]
    *shares, before = [part / size if size else 0.0 for part in parts]
    return shares[::-1], before


def effective_rank(gram: Tensor) -> float:
    """How many directions a set of keys fills (Roy and Vetterli, 2007): exp of the entropy of its singular values, as
    shares of their sum; 1 for keys of one direction, K for keys spread evenly, 0 where all keys are 0.

    Args:
        gram: (K, K) float64, the sum of k k^T.
    """
    singular = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    total = singular.sum()
    return torch.special.entr(singular / total).sum().exp().item() if total else 0.0
