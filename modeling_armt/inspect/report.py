"""What an inspection finds: values that `json` can write, and a table of them.

A list over segments has one entry for each segment of the text, in order.
"""

import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class LayerReport:
    """The memory of one layer.

    Attributes:
        layer: its number in the backbone, from 0.
        beta_mean, beta_min, beta_max: how strongly the segment's memory tokens write, 0 to 1; over these tokens.
        gamma_mean, gamma_min, gamma_max: share of their keys that is new to the memory, 0 to 1; 1 where it was empty.
        norm_A, norm_z: Frobenius norms after the segment.
        read_share: |what a token reads| / |its hidden state before|, mean over the text tokens; 0 where the memory was
            empty.
        effective_rank: of all keys of the text written so far, each at unit length: exp of the entropy of their
            singular values as shares of their sum; 1 to K, 0 where all keys are 0.
        features_used: share of the K features that were above 0 in any key so far.
        sources: shares of the question's reads that come from each segment from `first_source` on. With
            `source_before` they add up to 1, or are 0 where nothing is read; negative where others outweigh them.
        source_before: the share of all that was written earlier.
    """

    layer: int
    beta_mean: list[float]
    beta_min: list[float]
    beta_max: list[float]
    gamma_mean: list[float]
    gamma_min: list[float]
    gamma_max: list[float]
    norm_A: list[float]
    norm_z: list[float]
    read_share: list[float]
    effective_rank: list[float]
    features_used: list[float]
    sources: list[float]
    source_before: float


@dataclass(frozen=True)
class MemoryReport:
    """The memory of all layers that have one.

    Attributes:
        features: K. memory_tokens: M, keys that a segment writes.
        segments_before: segments that the memory had seen before the text; the text's first one has the next number.
        segment_tokens: text tokens of each segment.
        question_tokens: the last so many tokens, whose reads are traced to their sources.
        first_source: number of the first segment that has a share of its own in `sources`.
    """

    features: int
    memory_tokens: int
    segments_before: int
    segment_tokens: list[int]
    question_tokens: int
    first_source: int
    layers: list[LayerReport]

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1) + "\n"

    @property
    def numbers(self) -> list[int]:
        """Numbers of the text's segments."""
        return [self.segments_before + 1 + index for index in range(len(self.segment_tokens))]

    @property
    def asking(self) -> str:
        return "the last token" if self.question_tokens == 1 else f"the last {self.question_tokens} tokens"

    def table(self) -> str:
        """A line a layer."""
        lines = [
            f"{len(self.segment_tokens)} segments, {sum(self.segment_tokens)} tokens, K = {self.features} features; "
            "beta is the mean over segments, the rest is of the last one",
            f"{'layer':>5}{'beta':>8}{'gamma':>8}{'|A|':>10}{'read/hidden':>13}{'rank':>8}{'features':>10}"
            f"  segments that {self.asking} read",
        ]
        for layer in self.layers:
            beta = sum(layer.beta_mean) / len(layer.beta_mean)
            lines.append(
                f"{layer.layer:>5}{beta:>8.3f}{layer.gamma_mean[-1]:>8.3f}{layer.norm_A[-1]:>10.3g}"
                f"{layer.read_share[-1]:>13.3g}{layer.effective_rank[-1]:>8.1f}{layer.features_used[-1]:>10.0%}"
                f"  {self._largest_sources(layer)}"
            )
        return "\n".join(lines)

    def _largest_sources(self, layer: LayerReport, number: int = 4) -> str:
        named = {str(self.first_source + index): share for index, share in enumerate(layer.sources)}
        named["before"] = layer.source_before
        largest = sorted(named, key=lambda name: -abs(named[name]))[:number]
        return ", ".join(f"{name} ({named[name]:.0%})" for name in largest if abs(named[name]) >= 0.005) or "none"
