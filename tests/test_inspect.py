"""The memory report: its numbers equal the equations, and what is read leads back to the segments that wrote it."""

import copy
import dataclasses

import pytest
import torch
from naive_armt import NaiveArmt
from tiny_models import SEGMENT, WIDTH, backbone_config, make, padded, tokens
from transformers import GPT2LMHeadModel, LlamaConfig

from modeling_armt import ArmtForCausalLM
from modeling_armt.inspect import inspect_memory, inspection
from modeling_armt.inspect.measures import Write, contributions, effective_rank
from modeling_armt.inspect.record import LayerRecord


class WatchedNaive(NaiveArmt):
    """Writes down what it reads and writes: lists over calls, by layer."""

    def row(self, ids):
        self.seen_reads = [[] for _ in range(self.layers)]  # (hidden state, query, memory) of every position
        self.seen_writes = [[] for _ in range(self.layers)]  # outputs at the memory tokens and memory of every segment
        with torch.no_grad():
            return super().row(ids)

    def read(self, layer, h, memory):
        self.seen_reads[layer].append((h, self.feature(layer, "q", h), memory))
        return super().read(layer, h, memory)

    def write(self, layer, outputs, memory):
        self.seen_writes[layer].append((outputs, memory))
        return super().write(layer, outputs, memory)

    def association(self, layer, m):
        gate = self.w[f"memory_layers.{layer}.W_b"] @ m + self.w[f"memory_layers.{layer}.bias_b"]
        return self.feature(layer, "k", m), self.w[f"memory_layers.{layer}.W_v"] @ m, torch.sigmoid(gate)


def naive_columns(naive, layer, states, sizes):
    """Every list of a `LayerReport` but the sources, from its definition."""
    columns = {}
    used, all_keys, position = 0, [], 0
    for segment, (outputs, memory) in enumerate(naive.seen_writes[layer]):
        keys, _, betas = zip(*[naive.association(layer, m) for m in outputs])
        gammas = [torch.tensor(1.0)] * len(keys)
        if memory is not None and naive.use_correction:
            gammas = [(1 - (k @ memory[1] + 1e-5) / (k @ k + 1e-5)).clamp(0, 1) for k in keys]
        all_keys += [k / k.norm() for k in keys]
        used = used + sum((k > 0).double() for k in keys)
        singular = torch.linalg.svdvals(torch.stack(all_keys))
        shares = (singular / singular.sum()).tolist()
        ratios = [0.0]
        if segment:
            own = naive.seen_reads[layer][position : position + sizes[segment]]
            ratios = [((q @ A) / (q @ z + 1e-5)).norm() / h.norm() for h, q, (A, z) in own]
            position += sizes[segment] + len(outputs)
        A, z = states[segment][layer]
        row = {"norm_A": A.norm(), "norm_z": z.norm(), "read_share": sum(ratios) / len(ratios)}
        row["effective_rank"] = torch.tensor([-p * torch.tensor(p).log() for p in shares if p > 0]).sum().exp()
        row["features_used"] = (used > 0).double().mean()
        for name, values in (("beta", torch.cat(betas)), ("gamma", torch.stack(gammas))):
            row |= {f"{name}_mean": values.mean(), f"{name}_min": values.min(), f"{name}_max": values.max()}
        for name, value in row.items():
            columns.setdefault(name, []).append(float(torch.as_tensor(value).detach()))
    return columns


def naive_sources(naive, layer, sizes, question):
    """Shares of all segments in the reads of the last `question` tokens, by keeping what every segment wrote, worn down
    by each later write."""
    parts, along, energy = [], torch.zeros(len(sizes)).double(), 0.0
    position, left = 0, sum(sizes)
    for segment, (outputs, memory) in enumerate(naive.seen_writes[layer]):
        if segment:
            for _, q, (A, z) in naive.seen_reads[layer][position : position + sizes[segment]]:
                if left <= question:
                    whole = (q @ A) / (q @ z + 1e-5)
                    mine = [(q @ part) / (q @ z + 1e-5) for part in parts]
                    torch.testing.assert_close(sum(mine), whole)
                    along[: len(parts)] += torch.stack([part @ whole for part in mine])
                    energy += whole @ whole
                left -= 1
            position += sizes[segment] + len(outputs)
        else:
            left -= sizes[0]
        written = 0
        worn = list(parts)
        for m in outputs:
            k, v, beta = naive.association(layer, m)
            written = written + beta * torch.outer(k, v)
            if memory is not None:
                worn = [w - beta * torch.outer(k, k @ part) / (k @ memory[1] + 1e-5) for w, part in zip(worn, parts)]
        parts = [*worn, written]
    return (along / energy).tolist()


@pytest.mark.parametrize("use_correction", [True, False])
def test_every_number_equals_the_equations(use_correction):
    model, sizes = make(d_mem=3, nu=2, use_correction=use_correction), [6, 6, 6, 6, 2]
    ids = tokens(sum(sizes))
    report = inspect_memory(model, ids)
    assert (report.segment_tokens, report.question_tokens, report.features) == (sizes, 2, 12)
    naive = WatchedNaive(model.state_dict(), heads=2, segment_size=SEGMENT, nu=2, use_correction=use_correction)
    _, states = naive.row(ids.tolist())
    for number, layer in enumerate(report.layers):
        assert layer.layer == number
        for name, values in naive_columns(naive, number, states, sizes).items():
            assert getattr(layer, name) == pytest.approx(values, rel=1e-4, abs=1e-5), name
        assert layer.gamma_min[0] == layer.gamma_max[0] == 1 and layer.read_share[0] == 0


@pytest.mark.parametrize("alignment, sizes", [("left", [6, 6, 2]), ("right", [2, 6, 6]), ("center", [5, 5, 4])])
def test_segments_are_those_of_the_forward_pass(family, alignment, sizes):
    model, ids = make(family, segment_alignment=alignment), tokens(1, 14)
    report, state = inspect_memory(model, ids), model(ids).memory_state
    assert report.segment_tokens == sizes
    for index, layer in enumerate(report.layers):
        assert layer.norm_A[-1] == pytest.approx(state.A[index].norm().item(), rel=1e-5)


@pytest.mark.parametrize("question", [1, 2, 5, 11])
def test_sources_are_what_is_left_of_each_segments_write(question):
    model, sizes = make(d_mem=3, nu=2), [6, 6, 6, 6, 2]
    ids = tokens(sum(sizes))
    naive = WatchedNaive(model.state_dict(), heads=2, segment_size=SEGMENT, nu=2)
    naive.row(ids.tolist())
    whole = inspect_memory(model, ids, question_tokens=question)
    short = inspect_memory(model, ids, question_tokens=question, window=1)
    first = {1: 4, 2: 4, 5: 3, 11: 2}[question]  # the segment before the one where the question begins
    assert (whole.first_source, short.first_source) == (1, first)
    for number, (layer, folded) in enumerate(zip(whole.layers, short.layers)):
        assert layer.sources == pytest.approx(naive_sources(naive, number, sizes, question), abs=1e-4)
        assert sum(layer.sources) == pytest.approx(1, abs=1e-4) and layer.source_before == 0
        assert folded.sources == pytest.approx(layer.sources[first - 1 :], abs=1e-4)
        assert folded.source_before == pytest.approx(sum(layer.sources[: first - 1]), abs=1e-4)


def test_contributions_add_up_to_the_reads_from_a_memory_that_was_not_empty():
    torch.manual_seed(0)
    K, D, M = 7, 5, 3
    first = A = torch.randn(K, D, dtype=torch.float64)
    rows, writes, reads = [], [], []
    for asking in (0, 2, 0, 3):
        rows.append(torch.rand(asking, K))
        reads.append(rows[-1].double() @ A)
        keys, values, beta, overlap = torch.rand(M, K), torch.randn(M, D), torch.rand(M), torch.rand(M) + 0.1
        writes.append(Write(keys, values, beta, overlap))
        k, v, b, o = (tensor.double() for tensor in (keys, values, beta[:, None], overlap[:, None]))
        A = A + k.T @ (b * (v - (k @ A) / o))
    parts = list(contributions(rows, writes, first))
    total = torch.zeros(5, D, dtype=torch.float64)
    for part in parts:
        total[: len(part)] += part
    assert [len(part) for part in parts] == [0, 3, 3, 5, 5]
    torch.testing.assert_close(total, torch.cat(reads[::-1]))


@pytest.mark.parametrize(
    "keys, rank",
    [
        (torch.eye(6)[:1], 1),
        (torch.eye(6), 6),
        (torch.eye(6)[:3].repeat(4, 1), 3),
        (torch.ones(9, 6), 1),
        (torch.zeros(3, 6), 0),
    ],
)
def test_effective_rank_counts_directions(keys, rank):
    assert effective_rank(keys.T.double() @ keys.double()) == pytest.approx(rank, abs=1e-5)


FACT, OTHER = 1, 2  # tokens


def remembering(overwrite):
    """One layer whose attention is a mean and whose memory token writes one value under one key where the segment has
    FACT; elsewhere it writes nothing, or with `overwrite` the value 0."""
    config = LlamaConfig(
        vocab_size=3, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, pad_token_id=0
    )
    model = ArmtForCausalLM.from_backbone(config, segment_size=4, num_mem_tokens=1, d_mem=2, nu=1).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        layer, memory = model.backbone.model.layers[0], model.memory_layers["0"]
        layer.input_layernorm.weight.fill_(1)
        for matrix in (layer.self_attn.v_proj, layer.self_attn.o_proj):
            matrix.weight.copy_(torch.eye(8))
        table = model.get_input_embeddings().weight
        table[FACT, 0] = table[OTHER, 1] = model.memory_tokens[0, 2] = 1
        memory.W_q[:, :2] = memory.W_k[:, 2:3] = memory.W_v[3, 0] = 1
        memory.W_b[0, 0], memory.bias_b[0] = (0, 50) if overwrite else (100, -20)
    return model


@pytest.mark.parametrize("facts, source", [([2], 2), ([4], 4), ([2, 4], 4)])
def test_a_question_reads_what_the_last_segment_with_the_fact_wrote(facts, source):
    ids = torch.full((5, 4), OTHER)
    for segment in facts:
        ids[segment - 1, 1] = FACT
    (layer,) = inspect_memory(remembering(overwrite=False), ids.flatten()).layers
    assert layer.sources == pytest.approx([float(segment == source) for segment in range(1, 6)], abs=1e-3)
    assert [round(beta) for beta in layer.beta_mean] == [segment in facts for segment in range(1, 6)]
    assert layer.features_used == [0.25] * 5 and layer.effective_rank[-1] == pytest.approx(1, abs=1e-5)


def test_a_value_that_was_overwritten_is_read_no_more():
    ids = torch.full((5, 4), OTHER)
    ids[1, 1] = FACT
    (layer,) = inspect_memory(remembering(overwrite=True), ids.flatten()).layers
    assert layer.read_share[2] > 0.1 and max(layer.read_share[3:]) < 1e-3
    assert layer.norm_A[1] > 1 and layer.norm_A[2] < 1e-3


def assert_equal(report, other):
    assert (report.segment_tokens, report.question_tokens) == (other.segment_tokens, other.question_tokens)
    for layer, theirs in zip(report.layers, other.layers, strict=True):
        for name, values in dataclasses.asdict(layer).items():
            assert values == pytest.approx(getattr(theirs, name), rel=1e-4, abs=1e-4), name


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_row_of_a_padded_batch_gives_what_it_gives_alone(family, side):
    model = make(family)
    rows = [tokens(1, 20), tokens(1, 26, seed=1), tokens(1, 5, seed=2)]
    ids, mask, _ = padded(rows, side)
    for number, row in enumerate(rows):
        alone = inspect_memory(model, row[0].tolist())
        assert_equal(inspect_memory(model, ids, attention_mask=mask, row=number), alone)


def test_a_memory_that_is_handed_over_is_one_source(family):
    model, ids = make(family), tokens(2, 5 * SEGMENT + 2)
    whole = inspect_memory(model, ids, row=1)
    state = model.read(ids[:, : 3 * SEGMENT])
    rest = inspect_memory(model, ids[:, 3 * SEGMENT :], memory_state=state, row=1)
    assert (rest.segments_before, rest.numbers, rest.first_source) == (3, [4, 5, 6], 4)
    for layer, part in zip(whole.layers, rest.layers):
        for name in ("beta_mean", "gamma_mean", "norm_A", "norm_z", "read_share"):
            assert getattr(part, name) == pytest.approx(getattr(layer, name)[3:], rel=1e-4, abs=1e-5)
        assert part.sources == pytest.approx(layer.sources[3:], abs=1e-4)
        assert part.source_before == pytest.approx(sum(layer.sources[:3]), abs=1e-4)
    assert_equal(inspect_memory(model, ids, memory_state=model.empty_state(2), row=1), whole)


def test_the_model_is_left_as_it_was():
    model, ids = make(memory_layers=[0, 2]).train(), tokens(1, 20)
    model.memory_layers["2"].eval()
    before = copy.deepcopy(model.state_dict())
    report = inspect_memory(model, ids)
    assert [layer.layer for layer in report.layers] == [0, 2]
    modes = [module.training for module in model.modules()]
    assert modes.count(False) == 1 and not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_fresh_model_reads_nothing_from_anywhere():
    report = inspect_memory(make(shaken=False), tokens(20))
    for layer in report.layers:
        assert not any([*layer.sources, *layer.read_share, *layer.norm_A]) and min(layer.beta_min) > 0
    assert "none" in report.table()


def test_weights_of_half_precision_are_inspected():
    layers = inspect_memory(make("llama").bfloat16(), tokens(26)).layers
    assert [sum(layer.sources) for layer in layers] == pytest.approx([1] * 3, abs=1e-3)


def test_of_what_was_read_the_question_alone_is_kept(monkeypatch):
    records = []

    class Kept(LayerRecord):
        def report(self):
            records.append(self)
            return super().report()

    monkeypatch.setattr(inspection, "LayerRecord", Kept)
    inspect_memory(make(), tokens(20 * SEGMENT), question_tokens=5, window=4)
    for record in records:
        rows, reads = (sum(kept.untyped_storage().nbytes() for kept in part) for part in (record.rows, record.reads))
        assert (rows, reads) == (5 * 24 * 4, 5 * WIDTH * 4) and len(record.writes) == 5


def test_autocast_changes_nothing():
    model, ids = make("llama"), tokens(26)
    with torch.autocast("cpu", torch.bfloat16):
        report = inspect_memory(model, ids)
    assert report == inspect_memory(model, ids)


def broken():
    model = make()
    torch.nn.init.constant_(model.memory_layers["1"].W_v, float("nan"))
    return model


@pytest.mark.parametrize(
    "model, options, message",
    [
        (lambda: make(kind="rmt"), {}, "RmtForCausalLM has no associative memory"),
        (lambda: GPT2LMHeadModel(backbone_config("gpt2")), {}, "GPT2LMHeadModel has no associative memory"),
        (lambda: make(num_mem_tokens=0), {}, "num_mem_tokens is 0"),
        (broken, {}, "memory of layer 1 is not finite after segment 1"),
        (make, {"question_tokens": 0}, "question_tokens is 0; give 1 to 20"),
        (make, {"question_tokens": 21}, "question_tokens is 21; give 1 to 20"),
        (make, {"row": 2}, "row is 2; the batch has 2 rows"),
        (make, {"window": 0}, "window is 0"),
        (make, {"attention_mask": torch.ones(2, 3)}, r"attention_mask has shape \(2, 3\); the input has \(2, 20\)"),
        (make, {"attention_mask": torch.zeros(2, 20)}, "no token"),
        (make, {"memory_state": make().empty_state(1)}, "this model and batch need"),
    ],
)
def test_what_cannot_be_inspected_is_refused(model, options, message):
    model = model()
    with pytest.raises(ValueError, match=message):
        inspect_memory(model, tokens(2, 20), **options)
    assert not any(module._forward_hooks for module in model.modules())
