"""The recurrence by diagonals: cells (layer l, segment s) with equal l + s run together, as a group of stacked layers.

A cell needs the layer below in its own segment and its own layer in the segment before, both of the diagonal before.
So S segments of L layers take L + S - 1 steps instead of L * S, each on up to L cells at once (arXiv 2506.05229): small
segments fill a GPU. Results are those of `sequential.py` to rounding; gradients too.

Segments that differ from the first in size, rows or padding are left to the sequential order, at the end.

Shapes: L layers, S segments, g cells of a diagonal, B batch, T text positions, C with the memory tokens, D model width.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..backbones import LayerInputs
from ..state import Memory, RecurrentState
from .compiled import compile_once, run_group
from .sequential import RunSegment, SegmentInput
from .sequential import run as run_in_order
from .stacks import Stack
from .steady import Memories, Steady

Sizes = tuple[int, int, int]  # positions of read tokens, text, write tokens
REPLAYED = {"cuda"}  # devices on which full diagonals are recorded and replayed
DIRECT = 8  # full diagonals before that: recording costs about as much as three


class Model(Protocol):
    """What the executor needs of a model whose write tokens do not depend on its memory."""

    run_segment: RunSegment
    compiles: bool

    def begin_segment(self, segment: SegmentInput, memory: Memory | None) -> tuple[Tensor, LayerInputs, Sizes]:
        """Hidden states (B, C, D) before the first layer; read tokens, text and write tokens in them."""

    def empty_state(self, batch: int, device: torch.device) -> RecurrentState: ...

    def stacks(self) -> list[Stack]: ...


def run(
    model: Model,
    segments: Iterable[SegmentInput],
    memory: Memory | None,
    segments_seen: Tensor | None,
    batch: int,
    keep: Callable[[int, Tensor], Tensor | None],
    replay: bool = False,
) -> tuple[list[Tensor | None], Memory | None, Tensor | None]:
    """`sequential.run` in the other order. A segment that does not write must be the last: no memory is returned then.

    Args:
        replay: keep only what stands between diagonals for the backward pass, and run each again there.
    """
    segments = iter(segments)
    first = next(segments)
    if not _fits(first, first):
        rest = chain([first], segments)
        return run_in_order(model.run_segment, rest, memory, segments_seen, batch, keep, replay)
    fitting = _Fitting(first, segments)
    pipeline = _Pipeline(model, first, memory, segments_seen, batch, replay)
    kept = [keep(index, hidden) for index, hidden in enumerate(pipeline.run(fitting))]
    pipeline.steady = None  # it refers back to the pipeline: the memory of both would wait for the garbage collector
    if not fitting.last.writes:
        return kept, None, None
    memory, seen = pipeline.memory(), pipeline.segments_seen + len(kept)
    if fitting.other is None:
        return kept, memory, seen

    def keep_later(index: int, hidden: Tensor) -> Tensor | None:
        return keep(index + len(kept), hidden)

    rest = chain([fitting.other], segments)
    later, memory, seen = run_in_order(model.run_segment, rest, memory, seen, batch, keep_later, replay)
    return kept + later, memory, seen


def _fits(segment: SegmentInput, first: SegmentInput) -> bool:
    """Whether both can stand in one stack; what follows the text of a segment that does not write is nobody's."""
    if segment.rows is not None or segment.padding is not None:
        return False
    size, first_size = segment.embeddings.shape[1], first.embeddings.shape[1]
    return size == first_size if segment.writes else size <= first_size and segment is not first


class _Fitting:
    """Segments that fit the first, up to one that does not, which is then `other`; `last` is the one before."""

    def __init__(self, first: SegmentInput, rest: Iterator[SegmentInput]):
        self.last, self.rest, self.other = first, rest, None

    def __iter__(self) -> Iterator[SegmentInput]:
        first = self.last
        yield first
        for segment in self.rest:
            if not _fits(segment, first):
                self.other = segment
                return
            self.last = segment
            yield segment


class _Pipeline:
    """The diagonals, one after the other.

    Attributes:
        memories: of each stack, A (n, B, K, D) and z (n, B, K); () without memory.
        segments_seen: (B,) long, segments that wrote before the first.
    """

    def __init__(
        self,
        model: Model,
        first: SegmentInput,
        memory: Memory | None,
        segments_seen: Tensor | None,
        batch: int,
        replay: bool,
    ):
        self.model, self.replay = model, replay
        self.stacks = model.stacks()
        self.parameters = [stack.parameters() for stack in self.stacks]
        self.device, self.size = first.embeddings.device, first.embeddings.shape[1]
        self.num_layers = sum(len(stack.cells) for stack in self.stacks)
        self.order = sorted(number for stack in self.stacks if stack.has_memory for number in stack.numbers)
        if memory is None:
            state = model.empty_state(batch, self.device)
            memory, segments_seen = state.unbind(), state.segments_seen
        self.segments_seen = segments_seen
        self.indexes: dict[tuple[int, ...], Tensor] = {}
        self.steady: Steady | None = None
        self.num_direct = 0
        A, z = memory[: len(self.order)], memory[len(self.order) :]
        self.memories = [
            tuple(torch.stack([part[self.order.index(number)] for number in stack.numbers]) for part in (A, z))
            if stack.has_memory
            else ()
            for stack in self.stacks
        ]

    def memory(self) -> Memory:
        """After the last diagonal, in the executors' form: A of all layers, then z of all layers."""
        parts = {}
        for stack, memory in zip(self.stacks, self.memories):
            for name, part in zip("Az", memory):
                parts |= {(name, number): tensor for number, tensor in zip(stack.numbers, part.unbind(0))}
        return tuple(parts[name, number] for name in "Az" for number in self.order)

    def run(self, segments: Iterable[SegmentInput]) -> Iterator[Tensor]:
        """Hidden states (B, T, D) of the text of each segment, after the last layer."""
        segments, low, step = iter(segments), 0, 0
        waiting: Tensor | None = None  # (g, B, C, D), inputs of layers low, low + 1, ... in the next diagonal
        inside: list[SegmentInput] = []  # of the waiting cells, the last segment first
        while True:
            entering = next(segments, None)
            if entering is None:
                low += 1
            else:
                hidden, inputs, self.sizes = self.model.begin_segment(entering.filled(self.size), None)
                waiting = hidden[None] if waiting is None else torch.cat((hidden[None], waiting))
                inside.insert(0, entering)
            if not inside:
                return
            if len(inside) == self.num_layers <= step and self._replays():
                waiting = self._full(waiting, inputs)
            else:
                waiting = self._diagonal(waiting, low, step, [segment.cut_graph for segment in inside], inputs)
            if low + len(inside) == self.num_layers:
                yield waiting[-1, :, : inside.pop().embeddings.shape[1]]
                waiting = waiting[:-1]
            step += 1

    def _replays(self) -> bool:
        device = self.device.type
        if torch.is_grad_enabled() or torch.is_autocast_enabled(device):
            return False
        return device in REPLAYED and self.stacks[0].cells[0].family.recordable

    def _full(self, hidden: Tensor, inputs: LayerInputs) -> Tensor:
        """`_diagonal` over all layers, where no segment is the first and no gradient is wanted."""
        cuts = [False] * self.num_layers

        def step(hidden: Tensor, memories: Memories) -> tuple[Tensor, Memories]:
            self.memories = list(memories)
            return self._diagonal(hidden, 0, self.num_layers, cuts, inputs), self.memories

        if self.steady is None and self.num_direct < DIRECT:
            self.num_direct += 1
            return step(hidden, self.memories)[0]
        if self.steady is None:
            self.steady = Steady(step, hidden, self.memories)
        output = self.steady(hidden).clone()  # its buffer is the next diagonal's too
        self.memories = list(self.steady.memories)
        return output

    def _diagonal(self, hidden: Tensor, low: int, step: int, cuts: list[bool], inputs: LayerInputs) -> Tensor:
        """Layers low, low + 1, ... over hidden (g, B, C, D); updates their memories."""
        high = low + len(hidden)
        seen = torch.ones(len(hidden), len(self.segments_seen), dtype=torch.bool, device=self.device)
        if step < high:  # the first segment is among them
            seen[step - low] = self.segments_seen.to(self.device) > 0
        spans = [stack.span(low, high) for stack in self.stacks]
        parts = [tuple(part[span] for part in memory) for memory, span in zip(self.memories, spans)]
        groups = [[number - low for number in stack.numbers[span]] for stack, span in zip(self.stacks, spans)]
        if torch.is_grad_enabled() and any(cuts):
            parts = [_cut(part, [cuts[place] for place in group]) for part, group in zip(parts, groups)]

        def groups_of_cells(hidden: Tensor, parts: list[tuple[Tensor, ...]]):
            return [
                self._group(
                    number, spans[number], self._take(hidden, group), parts[number], self._take(seen, group), inputs
                )
                for number, group in enumerate(groups)
                if group
            ]

        if self.replay:
            done = checkpoint(groups_of_cells, hidden, parts, use_reentrant=False)
        else:
            done = groups_of_cells(hidden, parts)
        active = [number for number, group in enumerate(groups) if group]
        for number, (_, part) in zip(active, done):
            self.memories[number] = tuple(map(_put, self.memories[number], part, [spans[number]] * len(part)))
        if len(active) == 1:
            return done[0][0]
        places = [place for number in active for place in groups[number]]
        order = sorted(range(len(places)), key=places.__getitem__)
        return torch.cat([hidden for hidden, _ in done])[self._index(order)]

    def _group(
        self,
        number: int,
        span: slice,
        hidden: Tensor,
        memory: tuple[Tensor, ...],
        seen: Tensor,
        inputs: LayerInputs,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        stack = self.stacks[number]
        parameters = {name: tensor[span] for name, tensor in self.parameters[number].items()}
        is_whole = len(hidden) == len(stack.cells)
        run = compile_once(run_group) if self.model.compiles and is_whole else Stack.run
        return run(stack, parameters, hidden, memory, seen, inputs, self.sizes[2])

    def _take(self, x: Tensor, places: list[int]) -> Tensor:
        """x[places], a view where they stand together."""
        if places[-1] - places[0] + 1 == len(places):
            return x[places[0] : places[-1] + 1]
        return x[self._index(places)]

    def _index(self, places: list[int]) -> Tensor:
        """On the device, where each is copied to once: recorded diagonals cannot wait for a copy."""
        key = tuple(places)
        if key not in self.indexes:
            self.indexes[key] = torch.tensor(places, device=self.device)
        return self.indexes[key]


def _put(whole: Tensor, part: Tensor, span: slice) -> Tensor:
    """`whole` (n, ...) with its `span` replaced."""
    if part.shape == whole.shape:
        return part
    return torch.cat((whole[: span.start], part, whole[span.stop :]))


def _cut(memory: tuple[Tensor, ...], cuts: list[bool]) -> tuple[Tensor, ...]:
    """The memory of a group; that of cells in `cuts` is detached from its graph."""
    if not any(cuts):
        return memory
    return tuple(torch.stack([one.detach() if cut else one for one, cut in zip(part, cuts)]) for part in memory)
