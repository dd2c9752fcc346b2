"""FLOPs counted from a configuration are those that torch counts in real passes, and those worked out by hand."""

import pytest
import torch
from tiny_models import CONFIGS, LORA, MEMORY, SEGMENT, WIDTH, make, padded, tokens
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPT2Config

from lm_experiments_tools.utilisation import CPU_ATTENTION, Utilisation
from modeling_armt import ArmtConfig, ArmtForCausalLM
from modeling_armt.backbones import blocked_attention
from modeling_armt.flops import FlopCount, without_weights
from modeling_armt.layer import ArmtLayer

GIGA = 1e9
FUSED_ATTENTION = next(iter(CPU_ATTENTION))
OPTIONS = {
    "one layer with memory": dict(memory_layers=[1]),
    "no memory": dict(num_mem_tokens=0),
    "short segment first": dict(segment_alignment="right"),
    "even segments": dict(segment_alignment="center"),
    "wide keys": dict(d_mem=7, nu=2),
    "LoRA": dict(lora=LORA),
}


class Counter(FlopCounterMode):
    """By torch. Angles of rotary positions are left out: some versions of transformers compute them by a product."""

    def __init__(self):
        super().__init__(display=False, custom_mapping=CPU_ATTENTION)

    def get_total_flops(self):
        angles = [counts for name, counts in self.get_flop_counts().items() if "rotary" in name.split(".")[-1].lower()]
        return super().get_total_flops() - sum(sum(counts.values()) for counts in angles)


def counted_parts(model, run, monkeypatch):
    """By torch; the decoder layers, the head, and attention that is not fused are together in `rest`."""
    found = dict.fromkeys(("read", "write"), 0)

    def counting(name, function):
        def inside(*args):
            with Counter() as inner:
                output = function(*args)
            found[name] += inner.get_total_flops()
            return output

        return inside

    monkeypatch.setattr(blocked_attention, "_fits", lambda *args, **options: False)
    for name in found:
        monkeypatch.setattr(ArmtLayer, name, counting(name, getattr(ArmtLayer, name)))
    with Counter() as whole, torch.no_grad():
        run()
    found["attention"] = whole.get_flop_counts()["Global"].get(FUSED_ATTENTION, 0)
    return found | {"rest": whole.get_total_flops() - sum(found.values())}


def assert_parts(mine, counted):
    mine = mine.parts()
    mine["rest"] = mine.pop("dense") + mine.pop("head")
    if not counted["attention"]:
        mine["rest"], mine["attention"] = mine["rest"] + mine["attention"], 0
    assert mine == counted


@pytest.mark.parametrize("family", CONFIGS)
def test_every_part_of_a_forward_pass(family, monkeypatch):
    model, ids = make(family), tokens(1, 3 * SEGMENT + 2)
    count = FlopCount(model)
    mine = count.sequence(ids.shape[1], causal=False) + count.head(ids.shape[1])
    assert_parts(mine, counted_parts(model, lambda: model(ids), monkeypatch))


@pytest.mark.parametrize("kind", ["armt", "rmt"])
@pytest.mark.parametrize("family", [family for family in CONFIGS if family != "gemma2"])  # whose attention is not fused
def test_what_is_not_asked_for_of_the_last_layer_is_not_needed(family, kind, monkeypatch):
    model, ids = make(family, kind), tokens(1, 3 * SEGMENT + 2)
    count = FlopCount(model)
    mine = count.sequence(ids.shape[1], causal=False, wanted=[3 * SEGMENT + 1]) + count.head(1)
    assert_parts(mine, counted_parts(model, lambda: model(ids, logits_to_keep=1), monkeypatch))
    assert_parts(
        count.sequence(ids.shape[1], causal=False, wanted=()),
        counted_parts(model, lambda: model.read(ids), monkeypatch),
    )


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_that_changes_what_is_computed(name, monkeypatch):
    model, ids = make("llama", **OPTIONS[name]), tokens(1, 2 * SEGMENT + 1)
    count = FlopCount(model)
    mine = count.sequence(ids.shape[1], causal=False) + count.head(ids.shape[1])
    assert_parts(mine, counted_parts(model, lambda: model(ids), monkeypatch))


def test_a_memory_that_is_handed_over_is_read_from_the_first_segment_on(monkeypatch):
    model, ids = make("llama"), tokens(1, 2 * SEGMENT)
    state, count = model.read(ids), FlopCount(model)
    mine = count.sequence(ids.shape[1], seen=True, write_last=False, causal=False) + count.head(2 * SEGMENT)
    counted = counted_parts(model, lambda: model(ids, memory_state=state, output_memory_state=False), monkeypatch)
    assert_parts(mine, counted)


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt-projected"])
def test_the_decoder_alone_over_the_whole_text(family):
    model, ids = make(family), tokens(1, 30)
    mine = FlopCount(model).decoder(30) + FlopCount(model).head(30)
    with Counter() as counted, torch.no_grad():
        model.backbone(ids)
    squares = FlopCount(model).attention(30, causal=False) - mine.attention
    assert counted.get_total_flops() == mine.total + squares


@pytest.mark.parametrize("kind", ["armt", "rmt"])
@pytest.mark.parametrize("options", [{}, {"lora": LORA}], ids=["all trained", "LoRA"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3", "gemma3", "gpt_neox"])
def test_a_training_step_forward_and_backward(family, options, kind, monkeypatch):
    """Plain attention: the fused one computes its scores again in the backward pass. LoRA with the last layer whole: of
    its MLP another share is trained than of the rest."""
    model = make(family, kind, **options).train()
    ids = tokens(2, 3 * SEGMENT)
    labels = ids.clone()
    labels[:, :-2] = -100
    wanted = [3 * SEGMENT - 3, 3 * SEGMENT - 2]
    if options:
        labels[:, [2, SEGMENT + 2]] = 1
        wanted = [1, SEGMENT + 1, *wanted]
    monkeypatch.setattr(blocked_attention, "_fits", lambda *args, **options: False)
    with sdpa_kernel(SDPBackend.MATH), Counter() as forward:
        loss = model(ids, labels=labels, output_memory_state=False).loss
    with Counter() as backward:
        loss.backward()
    count = FlopCount(model)
    mine = count.sequence(ids.shape[1], write_last=False, causal=False, wanted=wanted) * 2
    mine += count.head(2 * len(wanted))
    assert mine.total == forward.get_total_flops()
    # frozen embeddings without memory tokens, in the last segment: no gradient through W_q of the lowest memory
    frozen = 2 * 2 * SEGMENT * WIDTH * model.config.d_mem if options and kind == "armt" else 0
    assert count.backward(mine).total - frozen == pytest.approx(backward.get_total_flops(), rel=1e-12)
    causal = count.sequence(ids.shape[1], write_last=False, wanted=wanted) * 2 + count.head(2 * len(wanted))
    needed = count.training({"input_ids": ids, "labels": labels})
    assert needed.total == pytest.approx((causal + count.backward(causal)).total)


def test_only_scores_that_are_seen_are_needed():
    count = FlopCount(make("mistral"))  # all layers slide over 4 positions
    positions, scores = SEGMENT + MEMORY, sum(min(i + 1, 4) for i in range(SEGMENT + MEMORY))
    assert count.attention(positions) * positions**2 == count.attention(positions, causal=False) * scores
    assert FlopCount(make("llama")).attention(3) * 9 == FlopCount(make("llama")).attention(3, causal=False) * 6


def test_padding_needs_nothing():
    rows = [tokens(1, 3 * SEGMENT), tokens(1, SEGMENT + 1)]
    count = FlopCount(make("llama"))
    ids, mask, _ = padded(rows, "left")
    whole = count.training({"input_ids": ids, "attention_mask": mask}).total
    assert whole == sum(count.training({"input_ids": row}).total for row in rows)
    assert whole < count.training({"input_ids": ids}).total


def test_gpt2_small_by_hand():
    """A segment of 512 tokens and 16 memory tokens, in GFLOP; per text token, in MFLOP."""
    model = without_weights(ArmtForCausalLM, ArmtConfig(backbone_config=GPT2Config(), segment_size=512, d_mem=64))
    count = FlopCount(model)
    segment = count.segment(512, seen=True, writes=True)
    found = {name: round(value / GIGA, 2) for name, value in segment.parts().items()}
    assert found == {"dense": 89.69, "attention": 5.15, "read": 4.36, "write": 0.47, "head": 0.0}
    assert round(segment.total / GIGA, 2) == 99.68
    assert round(segment.total / 512 / 1e6, 1) == 194.7
    assert round((segment + count.head(512)).total / 512 / 1e6, 1) == 271.9
    assert round(count.backward(segment).total / 512 / 1e6, 1) == 389.4
    squares = count.segment(512, seen=True, writes=True, causal=False) + count.head(528)
    assert round(count.attention(528, causal=False) / GIGA, 2) == 10.28
    assert round(squares.total / GIGA, 2) == 145.56


class Counting(torch.nn.Module):
    def training_flops(self, batch):
        return 10.0 * batch["input_ids"].numel() + 6 * (batch["input_ids"].shape[1] == 3)


def test_the_utilisation_takes_the_count_of_a_model_that_has_one():
    utilisation = Utilisation(torch.device("cpu"), torch.float32, 1e-9, Counting())  # 1000 FLOP/s
    assert utilisation.share(5.0) is None
    for length in (3, 5):
        with utilisation.counting({"input_ids": torch.zeros(2, length)}):
            pass
    assert utilisation.share(5.0) == pytest.approx(5 * (10 + 6 / 16) / 1000)


def test_for_another_model_torch_counts_one_micro_batch_attention_on_a_cpu_too():
    model, ids = make("gpt2"), tokens(2, SEGMENT)
    utilisation = Utilisation(torch.device("cpu"), torch.float32, 1.0, torch.nn.Identity())
    for _ in range(2):
        with utilisation.counting({"input_ids": ids}):
            model(ids)
    count = FlopCount(model)
    forward = count.sequence(SEGMENT, causal=False) * 2 + count.head(2 * SEGMENT)
    assert utilisation.share(1.0) == pytest.approx(3 * forward.total / ids.numel() / 1e12)
