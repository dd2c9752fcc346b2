"""ARMT as a Hugging Face model.

    model = ArmtForCausalLM.from_backbone("gpt2", segment_size=512, num_mem_tokens=16, d_mem=64)
    output = model(input_ids, labels=labels)

Shapes: B batch, N input tokens, S segments, T tokens of a segment, M memory tokens, D model width, V vocabulary,
n labelled positions.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from .backbones import backbone_of
from .configuration_armt import ArmtConfig
from .executors import sequential
from .executors.sequential import Cell, SegmentInput
from .generation import generate_greedily
from .layer import ArmtLayer
from .loss import cross_entropy, target_positions
from .segmentation import Segment, plan_segments
from .state import MemoryState


@dataclass
class ArmtOutput(ModelOutput):
    """What `ArmtForCausalLM` returns.

    Attributes:
        loss: mean cross-entropy over the labelled positions; with labels.
        logits: (B, N, V), without meaning on padding; without labels, or when asked for.
        labelled_logits: (n, V), logits at the positions that predict `labels[:, 1:] != -100`, in row-major order.
        memory_state: memory after the last segment.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    labelled_logits: Tensor | None = None
    memory_state: MemoryState | None = None


class ArmtForCausalLM(PreTrainedModel):
    """A Hugging Face decoder with associative recurrent memory (arXiv 2407.04841)."""

    config_class = ArmtConfig
    base_model_prefix = ""
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True

    def __init__(self, config: ArmtConfig, backbone: PreTrainedModel | None = None):
        super().__init__(config)
        self.backbone = AutoModelForCausalLM.from_config(config.backbone_config) if backbone is None else backbone
        self.family = backbone_of(self.backbone)
        self._check_positions()
        if config.num_mem_tokens:
            self.memory_tokens = nn.Parameter(torch.empty(config.num_mem_tokens, config.hidden_size))
        self.memory_layers = nn.ModuleDict({str(layer): ArmtLayer(config) for layer in config.layers_with_memory})
        self.post_init()

    @classmethod
    def from_backbone(cls, backbone: PreTrainedModel | PreTrainedConfig | str, **options) -> "ArmtForCausalLM":
        """Wrap a decoder.

        Args:
            backbone: a causal language model (kept, not copied), a configuration (random weights), a local folder
                or a hub name (weights loaded).
            options: fields of `ArmtConfig`.

        Raises:
            ValueError: the family is not supported, or a segment does not fit the model's positions.
        """
        if isinstance(backbone, PreTrainedConfig):
            backbone = AutoModelForCausalLM.from_config(backbone)
        elif not isinstance(backbone, PreTrainedModel):
            backbone = AutoModelForCausalLM.from_pretrained(backbone)
        model = cls(ArmtConfig(backbone_config=backbone.config, **options), backbone)
        return model.to(dtype=backbone.dtype, device=backbone.device)

    def _check_positions(self):
        needed = self.config.segment_size + self.config.num_mem_tokens
        if needed > self.family.max_positions:
            raise ValueError(
                f"segment_size {self.config.segment_size} + num_mem_tokens {self.config.num_mem_tokens} = {needed} "
                f"is longer than the {self.family.max_positions} positions of the backbone"
            )

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """Memory tokens get the spread of the token embeddings."""
        if isinstance(module, ArmtLayer):
            module.reset_parameters()
        elif module is self and self.config.num_mem_tokens:
            sample = torch.arange(min(1000, self.config.vocab_size), device=self.device)
            nn.init.normal_(self.memory_tokens, std=self.family.embed(sample).std().item())

    def get_input_embeddings(self) -> nn.Module:
        return self.backbone.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        return self.backbone.get_output_embeddings()

    def memory_parameters(self) -> list[nn.Parameter]:
        """The parameters that are not the backbone's."""
        return [parameter for name, parameter in self.named_parameters() if not name.startswith("backbone.")]

    def freeze_backbone(self) -> None:
        """Train nothing but the memory."""
        self.backbone.requires_grad_(False)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        memory_state: MemoryState | None = None,
        output_logits: bool | None = None,
        output_memory_state: bool = True,
    ) -> ArmtOutput:
        """Read a batch segment by segment.

        Args:
            input_ids: (B, N); or inputs_embeds: (B, N, D). attention_mask: (B, N), 0 on padding, on either side.
            labels: (B, N), -100 is ignored, shifted inside. The head runs at labelled positions only.
            memory_state: memory before the first segment. Handing over the state of a call that ended at a border
                of segments equals one call on the joined input.
            output_logits: compute logits everywhere; by default without labels only.
            output_memory_state: False skips the last segment's memory tokens, which only the next call would need.

        Raises:
            ValueError: a shape does not fit; the message gives both.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        embeddings = self.family.embed(input_ids) if inputs_embeds is None else inputs_embeds
        shape = tuple(embeddings.shape[:2])
        if labels is not None and tuple(labels.shape) != shape:
            raise ValueError(f"labels have shape {tuple(labels.shape)}; the input has {shape}")
        if output_logits is None:
            output_logits = labels is None
        targets = None if labels is None else target_positions(labels, attention_mask)
        plan = plan_segments(shape, attention_mask, self.config.segment_size, self.config.segment_alignment)
        picks = [_pick(segment, targets) for segment in plan]

        def keep(index: int, hidden: Tensor) -> Tensor | None:
            if output_logits:
                return hidden[:, : plan[index].size]
            if picks[index] is not None:
                row, slot, _ = picks[index]
                return hidden[row.to(hidden.device), slot.to(hidden.device)]

        kept, state = self._run(embeddings, plan, memory_state, keep, output_memory_state)
        output = ArmtOutput(memory_state=state)
        if output_logits:
            hidden = _join(kept, plan, shape)
            output.logits = self.family.head(hidden)
            if labels is not None:
                output.labelled_logits = output.logits[targets.to(hidden.device)]
        elif labels is not None:
            output.labelled_logits = self.family.head(_in_row_order(kept, picks, embeddings))
        if labels is not None:
            wanted = labels[:, 1:][targets[:, :-1].to(labels.device)]
            output.loss = cross_entropy(output.labelled_logits, wanted) + self._unused_memory(picks)
        return output

    def _run(
        self,
        embeddings: Tensor,
        plan: list[Segment],
        state: MemoryState | None,
        keep: Callable[[int, Tensor], Tensor | None],
        output_state: bool,
    ) -> tuple[list[Tensor | None], MemoryState | None]:
        """The planned segments of `embeddings` (B, N, D) through the executor."""
        batch = embeddings.shape[0]
        if state is None and plan[0].rows is not None:
            state = self.empty_state(batch)
        if state is not None:
            state.check(len(self.memory_layers), batch, self.config.num_features, self.config.hidden_size)
        segments = self._segment_inputs(embeddings, plan, write_last=output_state)
        return sequential.run(self.cells(), segments, state, batch, keep, output_state)

    def _segment_inputs(self, embeddings: Tensor, plan: list[Segment], write_last: bool) -> Iterator[SegmentInput]:
        first_whole = 0 if self.config.bptt_depth is None else len(plan) - self.config.bptt_depth
        for index, segment in enumerate(plan):
            writes = self.config.num_mem_tokens if write_last or index + 1 < len(plan) else 0
            device = embeddings.device
            hidden, inputs = self.family.begin(*self._with_memory_tokens(segment.take(embeddings), segment, writes))
            rows = None if segment.rows is None else segment.rows.to(device)
            yield SegmentInput(hidden, inputs, writes, rows, cut_graph=0 < index <= first_whole)

    def _with_memory_tokens(
        self, embeddings: Tensor, segment: Segment, writes: int
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Embeddings (b, T + writes, D), positions and mask of a segment: memory tokens follow each row's last."""
        batch, size, device = embeddings.shape[0], segment.size, embeddings.device
        if writes:
            memory = self.memory_tokens.to(embeddings.dtype).expand(batch, -1, -1)
            embeddings = torch.cat((embeddings, memory), dim=1)
        positions = torch.arange(size + writes, device=device).unsqueeze(0)
        if segment.lengths is None:
            return embeddings, positions, None
        valid = segment.valid().to(device)
        after = segment.lengths.to(device).unsqueeze(1) + torch.arange(writes, device=device)
        positions = torch.cat((positions[:, :size].expand(batch, -1), after), dim=1)
        mask = torch.cat((valid, valid.new_ones(batch, writes)), dim=1)
        return embeddings, positions, mask

    def cells(self) -> list[Cell]:
        """The layers, each with its memory, as the executors take them."""
        memories = dict(self.memory_layers.items())
        return [
            Cell(memories.get(str(number)), partial(self.family.run_layer, layer))
            for number, layer in enumerate(self.family.layers)
        ]

    def empty_state(self, batch: int) -> MemoryState:
        """A memory in which nothing is written, for `batch` rows."""
        config = self.config
        return MemoryState.zeros(len(self.memory_layers), batch, config.num_features, config.hidden_size, self.device)

    def _unused_memory(self, picks: list) -> Tensor | float:
        """A zero that depends on all memory parameters where the loss may not, so that DDP finds none unused."""
        reaches_memory = any(pick is not None for pick in picks[1:]) and self.config.bptt_depth is None
        if reaches_memory or not (self.training and torch.is_grad_enabled()):
            return 0.0
        return 0.0 * sum(parameter.sum() for parameter in self.memory_parameters() if parameter.requires_grad)

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        max_new_tokens: int = 20,
        eos_token_id: int | None = None,
        memory_state: MemoryState | None = None,
    ) -> Tensor:
        """Continue each row greedily: (B, N) -> (B, N + new), rows that ended are filled with `eos_token_id`.

        Full segments go to memory; the open one is continued with a key-value cache, and written when it is full.
        """
        return generate_greedily(self, input_ids, attention_mask, max_new_tokens, eos_token_id, memory_state)


Pick = tuple[Tensor, Tensor, Tensor]


def _pick(segment: Segment, targets: Tensor | None) -> Pick | None:
    """Rows and slots inside the segment that predict a label, and their places b * N + t in the input."""
    if targets is None:
        return None
    wanted = segment.take(targets)
    valid = segment.valid()
    row, slot = (wanted if valid is None else wanted & valid).nonzero(as_tuple=True)
    if not len(row):
        return None
    columns = segment.columns
    column = slot + columns.start if isinstance(columns, slice) else columns[row, slot]
    batch_row = row if segment.rows is None else segment.rows[row]
    return row, slot, batch_row * targets.shape[1] + column


def _in_row_order(kept: list[Tensor | None], picks: list[Pick | None], embeddings: Tensor) -> Tensor:
    """Picked hidden states of all segments (n, D), ordered by row, then by position."""
    if all(pick is None for pick in picks):
        return embeddings.new_zeros(0, embeddings.shape[-1])
    order = torch.cat([place for _, _, place in filter(None, picks)]).argsort()
    hidden = torch.cat([part for part in kept if part is not None])
    return hidden[order.to(hidden.device)]


def _join(kept: list[Tensor], plan: list[Segment], shape: tuple[int, int]) -> Tensor:
    """Hidden states of all segments at their places in the input, (B, N, D); zeros on padding."""
    if all(isinstance(segment.columns, slice) for segment in plan):
        return torch.cat(kept, dim=1)
    whole = kept[0].new_zeros(*shape, kept[0].shape[-1])
    for hidden, segment in zip(kept, plan):
        valid = segment.valid()
        valid = torch.ones(segment.columns.shape, dtype=torch.bool) if valid is None else valid
        rows = segment.row_index("cpu").expand_as(segment.columns)[valid].to(hidden.device)
        whole[rows, segment.columns[valid].to(hidden.device)] = hidden[valid.to(hidden.device)]
    return whole
