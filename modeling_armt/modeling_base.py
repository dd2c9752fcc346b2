"""What all recurrent models share: a decoder read segment by segment, with a memory that is an argument and a result.

A model says what stands around the text of a segment (`read_tokens`, `write_tokens`), how its layers run
(`run_layers`), and what its memory is (`state_class`, `empty_state`).

Shapes: B batch, N input tokens, b rows that have a segment, T tokens of a segment, R read and W write tokens, D model
width, V vocabulary, n labelled positions.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from .adapters import add_lora
from .backbones import LayerInputs, backbone_of
from .cache import ArmtCache
from .configuration_base import RecurrentConfig
from .executors.sequential import SegmentInput
from .executors.sequential import run as run_in_order
from .flops import FlopCount
from .generation import Reader, RecurrentGeneration
from .layout import lay_out, positions_and_mask, warn_of_size
from .loss import cross_entropy, fused_cross_entropy, target_positions
from .reading import RecurrentReading
from .saving import RecurrentSaving
from .segmentation import Segment, plan_segments, take_all
from .selection import Selection, last_tokens, to_rows
from .state import Memory, RecurrentState


@dataclass
class ArmtOutput(ModelOutput):
    """What a recurrent model returns.

    Attributes:
        loss: mean cross-entropy over the labelled positions, or their sum / `num_items_in_batch`; with labels.
        logits: (B, N, V), or (B, k, V) with `logits_to_keep=k`; without meaning on padding.
        target_logits: (n, V), logits at the positions that predict `labels[:, 1:] != -100`, in row-major order;
            when asked for.
        memory_state: memory after the last segment.
        cache: memory and open segment, with `use_cache`; before transformers 5.24 its name was `past_key_values`.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    target_logits: Tensor | None = None
    memory_state: RecurrentState | None = None
    cache: ArmtCache | None = None

    @property
    def past_key_values(self) -> ArmtCache | None:
        """The earlier name of `cache`."""
        return self.cache


class RecurrentModel(RecurrentReading, RecurrentGeneration, RecurrentSaving, PreTrainedModel, GenerationMixin, ABC):
    """A Hugging Face decoder with a memory between segments; the base of `ArmtForCausalLM` and `RmtForCausalLM`."""

    state_class: ClassVar[type[RecurrentState]]

    base_model_prefix = ""
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _is_stateful = True  # tokens that were written to memory cannot be taken back: no assisted decoding

    def __init__(self, config: RecurrentConfig, backbone: PreTrainedModel | None = None):
        super().__init__(config)
        if config.backbone_config is None:
            raise ValueError(
                f"the configuration has no backbone_config: wrap a decoder by {type(self).__name__}.from_backbone"
            )
        self.backbone = AutoModelForCausalLM.from_config(config.backbone_config) if backbone is None else backbone
        self.family = backbone_of(self.backbone)
        self._no_split_modules = self.backbone._no_split_modules
        self._check_positions()
        self.add_memory()
        if config.num_mem_tokens and config.memory_positions == "reserved":
            self.memory_positions = nn.Parameter(torch.empty(sum(self.memory_sizes), config.hidden_size))
        self.post_init()
        if config.lora is not None:
            add_lora(self.backbone, config.lora)

    @abstractmethod
    def add_memory(self) -> None:
        """Create the parameters of the memory."""

    @property
    def memory_sizes(self) -> tuple[int, int]:
        """R and W: memory tokens before and behind the text of a segment."""
        return 0, self.config.num_mem_tokens

    def read_tokens(self, memory: Memory | None, batch: int) -> Tensor | None:
        """(b, R, D): what stands before the text, or None."""
        return None

    @abstractmethod
    def write_tokens(self, memory: Memory | None, batch: int) -> Tensor:
        """(b, W, D): what stands behind the text of a segment that writes."""

    @abstractmethod
    def run_layers(
        self, hidden: Tensor, inputs: LayerInputs, memory: Memory | None, seen: Tensor | None, num_written: int
    ) -> tuple[Tensor, Memory | None]:
        """All layers over hidden states (b, C, D), whose last `num_written` positions are the write tokens.

        Args:
            memory: batch first, None where no row has any. seen: (b,) bool, rows whose memory is not empty.

        Returns:
            hidden states (b, C, D) and the next memory.
        """

    @abstractmethod
    def empty_state(self, batch: int, device: torch.device | str | None = None) -> RecurrentState:
        """A memory in which nothing is written, for `batch` rows; on the model's device by default."""

    def check_state(self, state: RecurrentState, batch: int) -> None:
        """Raise `ValueError` unless `state` is a memory of this model for a batch of this size."""
        state.check(self.empty_state(batch, device="meta"), self.device)

    @classmethod
    def from_backbone(cls, backbone: PreTrainedModel | PreTrainedConfig | str, **options) -> "RecurrentModel":
        """Wrap a decoder.

        Args:
            backbone: a causal language model (kept, not copied), a configuration (random weights), a local folder
                or a hub name (weights loaded).
            options: fields of the model's configuration.

        Raises:
            ValueError: the family is not supported, or a segment does not fit the model's positions.
        """
        if isinstance(backbone, PreTrainedConfig):
            backbone = AutoModelForCausalLM.from_config(backbone)
        elif not isinstance(backbone, PreTrainedModel):
            options.setdefault("backbone_name", str(backbone))
            backbone = AutoModelForCausalLM.from_pretrained(backbone)
        model = cls(cls.config_class(backbone_config=backbone.config, **options), backbone)
        return model.to(dtype=backbone.dtype, device=backbone.device)

    def _check_positions(self) -> None:
        config, limit = self.config, self.family.max_positions
        if config.memory_positions == "reserved" and not self.family.learned_positions:
            raise ValueError(
                f"memory_positions='reserved' is for learned positions; {config.backbone_config.model_type} computes "
                "its positions: give 'follow'"
            )
        taken = sum(self.memory_sizes) if config.memory_positions == "follow" else 0
        if config.segment_size + taken > limit:
            raise ValueError(
                f"segment_size {config.segment_size} + {taken} memory tokens (num_mem_tokens {config.num_mem_tokens}) "
                f"= {config.segment_size + taken} is longer than the {limit} positions of the backbone"
            )

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Memory tokens get the spread of the token embeddings, their positions that of the learned positions."""
        if module is self and self.config.num_mem_tokens:
            sample = torch.arange(min(1000, self.config.vocab_size), device=self.device)
            _normal_like(self.memory_tokens, self.family.embed(sample))
            if self.config.memory_positions == "reserved":
                places = torch.arange(min(1000, self.family.max_positions), device=self.device)
                _normal_like(self.memory_positions, self.family.embed_positions(places.unsqueeze(0)))

    def get_input_embeddings(self) -> nn.Module:
        return self.backbone.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.backbone.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.backbone.get_output_embeddings()

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.backbone.set_output_embeddings(value)

    def memory_parameters(self) -> list[nn.Parameter]:
        """The parameters that are not the backbone's."""
        return [parameter for name, parameter in self.named_parameters() if not name.startswith("backbone.")]

    def parameter_groups(self, memory_lr: float | None = None, memory_weight_decay: float = 0.0) -> list[dict]:
        """Groups for an optimizer: the backbone's parameters under its defaults, the memory's apart.

        Args:
            memory_lr: learning rate of the memory; None: the optimizer's. memory_weight_decay: decay holds gates shut.
        """
        memory = {id(parameter) for parameter in self.memory_parameters()}
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        options = {"weight_decay": memory_weight_decay} | ({} if memory_lr is None else {"lr": memory_lr})
        groups = [
            {"params": [parameter for parameter in trained if id(parameter) not in memory]},
            {"params": [parameter for parameter in trained if id(parameter) in memory]} | options,
        ]
        return [group for group in groups if group["params"]]

    def training_flops(self, batch: Mapping[str, Tensor]) -> float:
        """FLOPs that a forward and a backward pass over a batch need."""
        return FlopCount(self).training(batch).total

    def freeze_backbone(self) -> None:
        """Train nothing but the memory."""
        self.backbone.requires_grad_(False)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        memory_state: RecurrentState | None = None,
        cache: ArmtCache | None = None,
        past_key_values: ArmtCache | None = None,
        use_cache: bool = False,
        logits_to_keep: int = 0,
        num_items_in_batch: Tensor | int | None = None,
        output_logits: bool | None = None,
        output_target_logits: bool = False,
        output_memory_state: bool = True,
        commit_open_segment: bool = True,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> ArmtOutput | tuple:
        """Read a batch segment by segment.

        Args:
            input_ids: (B, N); or inputs_embeds: (B, N, D). attention_mask: (B, N), 0 on padding, on either side.
            labels: (B, N), -100 is ignored, shifted inside. The head runs at labelled positions only.
            memory_state: memory before the first segment. Handing over the state of a call that ended at a border
                of segments equals one call on the joined input.
            cache: memory and open segment of an earlier call with `use_cache`, which the input continues;
                `attention_mask` may cover what was read before. The cache is changed in place.
            past_key_values: the earlier name of `cache`.
            use_cache: leave the last segment open, for tokens to come; the output has `cache` instead of
                `memory_state`.
            logits_to_keep: logits of the last so many tokens of each row, wherever its padding stands; 0: of all.
            num_items_in_batch: divide the summed loss by this instead of the number of targets (Hugging Face's
                Trainer gives the targets of all micro-batches).
            output_logits: compute logits everywhere; by default without labels only.
            output_target_logits: return the logits at labelled positions.
            output_memory_state: False skips the last segment's memory tokens, which only the next call would need.
            commit_open_segment: with `cache`, write a full segment to memory before the next token; False:
                let it grow, up to the positions of the backbone.
            output_attentions, output_hidden_states: not kept; there for wrappers that pass them on.
            return_dict: False returns the values that are not None as a tuple.

        Raises:
            ValueError: a shape does not fit; the message gives both.
        """
        if output_attentions or output_hidden_states:
            raise ValueError("attentions and hidden states are not kept: leave output_attentions and the like out")
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        embeddings = self.family.embed(input_ids) if inputs_embeds is None else inputs_embeds
        shape = tuple(embeddings.shape[:2])
        if labels is not None and tuple(labels.shape) != shape:
            raise ValueError(f"labels have shape {tuple(labels.shape)}; the input has {shape}")
        if output_logits is None:
            output_logits = labels is None
        cache = past_key_values if cache is None else cache
        if attention_mask is not None and cache is not None:
            attention_mask = attention_mask[:, -shape[1] :]
        targets = None if labels is None else target_positions(labels, attention_mask)
        wanted = targets
        if output_logits:
            wanted = last_tokens(shape, attention_mask, logits_to_keep) if logits_to_keep and labels is None else None
        if use_cache or cache is not None:
            reader = Reader(self, commit_open_segment)
            hidden, cache = reader.read(embeddings, attention_mask, memory_state, cache, wanted)
            after, reaches_memory = {"cache": cache}, True
        else:
            plan = plan_segments(shape, attention_mask, self.config.segment_size, self.config.segment_alignment)
            selection = Selection(plan, shape, wanted)
            kept, state = self.run_segments(embeddings, plan, memory_state, selection, output_memory_state)
            hidden, after = selection.gather(kept, embeddings), {"memory_state": state}
            reaches_memory = selection.reaches_past_first_segment and self.config.bptt_depth is None
        logits = to_rows(self.family.head(hidden), wanted) if output_logits else None
        loss = target_logits = None
        if labels is not None:
            picked = hidden[targets.to(hidden.device)] if output_logits else hidden
            next_tokens = labels[:, 1:][targets[:, :-1].to(labels.device)].to(hidden.device)
            total, target_logits = self._loss(picked, next_tokens, output_target_logits)
            items = max(len(next_tokens), 1) if num_items_in_batch is None else num_items_in_batch
            loss = total / items + self._unused_memory(reaches_memory)
        output = ArmtOutput(loss=loss, logits=logits, target_logits=target_logits, **after)
        return output.to_tuple() if return_dict is False else output

    def _loss(self, hidden: Tensor, next_tokens: Tensor, output_logits: bool) -> tuple[Tensor, Tensor | None]:
        """Summed loss of hidden states (n, D) on the tokens that follow (n,), and their logits (n, V) if asked for."""
        if output_logits:
            logits = self.family.head(hidden)
            return cross_entropy(logits, next_tokens), logits
        prepared = self.family.prepare_head(hidden)
        return fused_cross_entropy(prepared, next_tokens, self.family.logits, self.family.plain_head), None

    def run_segments(
        self,
        embeddings: Tensor,
        plan: list[Segment],
        state: RecurrentState | None,
        selection: Selection,
        write_last: bool,
    ) -> tuple[list[Tensor | None], RecurrentState | None]:
        """The planned segments of `embeddings` (B, N, D) through the executor.

        Returns:
            What `selection` keeps of each segment, and the memory; None if nothing ever wrote, or without `write_last`.
        """
        batch = embeddings.shape[0]
        if state is not None:
            self.check_state(state, batch)
        elif plan[0].rows is not None:
            state = self.empty_state(batch)
        kept, memory, segments_seen = self.execute(
            self._segment_inputs(embeddings, plan, selection, write_last),
            None if state is None else state.unbind(),
            None if state is None else state.segments_seen,
            batch,
            selection.keep,
            replay=self.config.segment_checkpointing and self.training and torch.is_grad_enabled(),
        )
        if segments_seen is None or not write_last:
            return kept, None
        return kept, self.state_class.bind(memory, segments_seen)

    def execute(self, *args, **options) -> tuple[list[Tensor | None], Memory | None, Tensor | None]:
        """All cells of the recurrence: `executors.sequential.run` without its first argument."""
        warn_of_size(self.config.segment_size + sum(self.memory_sizes), self.device)
        return self.run_cells(*args, **options)

    def run_cells(self, *args, **options) -> tuple[list[Tensor | None], Memory | None, Tensor | None]:
        """`execute`, in the order of an executor."""
        return run_in_order(self.run_segment, *args, **options)

    def _segment_inputs(
        self, embeddings: Tensor, plan: list[Segment], selection: Selection, write_last: bool
    ) -> Iterator[SegmentInput]:
        first_whole = 0 if self.config.bptt_depth is None else len(plan) - self.config.bptt_depth
        for index, (segment, text) in enumerate(zip(plan, take_all(plan, embeddings))):
            writes = self.config.num_mem_tokens > 0 and (write_last or index + 1 < len(plan))
            rows = None if segment.rows is None else segment.rows.to(embeddings.device)
            cut_graph = 0 < index <= first_whole
            yield SegmentInput(text, segment.padding, writes, rows, cut_graph, selection.wants(index))

    def run_segment(
        self, segment: SegmentInput, memory: Memory | None, seen: Tensor | None
    ) -> tuple[Tensor, Memory | None]:
        """One segment: hidden states (b, T, D) of its text, and the next memory."""
        hidden, inputs, (before, size, written) = self.begin_segment(segment, memory)
        if written and not segment.text_wanted:
            inputs = replace(inputs, skipped=before + size)
        with self.family.faster_attention(hidden.device):
            hidden, memory = self.run_layers(hidden, inputs, memory, seen, written)
        return hidden[:, before : before + size], memory

    def begin_segment(
        self, segment: SegmentInput, memory: Memory | None
    ) -> tuple[Tensor, LayerInputs, tuple[int, int, int]]:
        """Hidden states (b, C, D) before the first layer, what all layers take beside them, and R, T, W in them."""
        text = segment.embeddings
        batch, size, _ = text.shape
        read = self.read_tokens(memory, batch)
        write = self.write_tokens(memory, batch) if segment.writes else None
        sizes = (0 if read is None else read.shape[1], size, 0 if write is None else write.shape[1])
        reserved = self.config.memory_positions == "reserved"
        positions, mask = positions_and_mask(sizes, segment.padding, reserved, text.device)
        hidden, inputs = self.family.begin(lay_out(read, text, write, segment.padding), positions, mask)
        return hidden, inputs, sizes

    def _unused_memory(self, reaches_memory: bool) -> Tensor | float:
        """A zero that depends on all memory parameters where the loss may not, so that DDP finds none unused."""
        if reaches_memory or not (self.training and torch.is_grad_enabled()):
            return 0.0
        return 0.0 * sum(parameter.sum() for parameter in self.memory_parameters() if parameter.requires_grad)


def _normal_like(parameter: Tensor, sample: Tensor) -> None:
    """Normal values of the sample's standard deviation, without reading it: the model may be on the meta device."""
    parameter.normal_().mul_(sample.std())
