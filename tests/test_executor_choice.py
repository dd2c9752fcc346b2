"""What chooses and speeds up an order of the cells changes no result: auto, torch.compile, replayed diagonals."""

import gc
import weakref
from functools import cache

import pytest
import torch
from test_diagonal import assert_same, close, gradients, in_double  # noqa: F401  the fixture
from tiny_models import LORA, SEGMENT, make, padded, tokens
from torch._dynamo.testing import CompileCounterWithBackend

from lm_experiments_tools.distributed.torch_fsdp import FsdpEngine
from lm_experiments_tools.errors import UserError
from modeling_armt import layout
from modeling_armt.executors import auto, compiled, diagonal
from modeling_armt.executors.steady import Steady


@pytest.fixture
def graphs(monkeypatch):
    """Counts the graphs that are compiled, and runs them without a compiler."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compile_once = cache(lambda function: torch.compile(function, dynamic=False, backend=counter, fullgraph=True))
    for module in (compiled, diagonal):
        monkeypatch.setattr(module, "compile_once", compile_once)
    yield counter
    torch._dynamo.reset()


def compiling(model):
    model.compile_cells()
    return model


@pytest.mark.parametrize("family", ["gpt2", "opt-projected", "gpt_neox", "llama", "gemma2", "falcon"])
def test_compiled_segments_give_the_same_by_one_graph_for_all_layers_of_a_kind(graphs, family):
    one, other = make(family), compiling(make(family))
    ids = tokens(2, 4 * SEGMENT - 3)  # the last segment is a short one
    assert_same(one(ids), other(ids), 1e-5)
    kinds = len(set(other._compiled.lead.values()))
    assert graphs.frame_count == kinds
    other(tokens(2, 3 * SEGMENT + 1, seed=1), output_memory_state=False)  # another short one, that does not write
    assert graphs.frame_count == kinds


@pytest.mark.parametrize("options", [{}, dict(segment_checkpointing=True), dict(lora=LORA), dict(memory_layers=[1])])
def test_compiled_segments_have_the_same_gradients(graphs, options):
    one, other = make(**options), compiling(make(**options))
    ids = tokens(2, 4 * SEGMENT - 3)
    (a, mine), (b, others) = gradients(one, ids), gradients(other, ids)
    close(a, b, 1e-5)
    assert graphs.frame_count > 0
    for name, gradient in mine.items():
        assert (gradient is None) == (others[name] is None), name
        if gradient is not None:
            close(gradient, others[name], 1e-4)


@pytest.mark.filterwarnings("error:There is a performance drop")  # torch's, where attention is called for each cell
@pytest.mark.parametrize("options", [{}, dict(memory_layers=[1, 2])])
def test_compiled_diagonals_give_the_same_by_one_graph_for_each_kind_of_layer(graphs, options):
    one, other = make(**options), compiling(make(executor="diagonal", **options))
    ids = tokens(2, 6 * SEGMENT - 3)
    with torch.no_grad():
        assert_same(one(ids), other(ids), 1e-5)
    assert graphs.frame_count == len(other.stacks())
    close(gradients(one, ids)[0], gradients(other, ids)[0], 1e-5)


@pytest.mark.parametrize("options", [{}, dict(memory_layers=[0, 2]), dict(memory_layers=[1])])
def test_replayed_diagonals_give_the_same_outputs_and_memory(in_double, monkeypatch, options):  # noqa: F811
    """Without a GPU the buffers are real, but the step is called where a graph would be launched."""
    monkeypatch.setattr(diagonal, "REPLAYED", {"cpu"})
    steps = []
    call = Steady.__call__
    monkeypatch.setattr(Steady, "__call__", lambda self, hidden: steps.append(1) or call(self, hidden))
    one, other = make(**options), make(executor="diagonal", **options)
    segments = diagonal.DIRECT + 9
    ids = tokens(2, segments * SEGMENT)
    with torch.no_grad():
        assert_same(one(ids), other(ids))
        state = one(tokens(2, SEGMENT, seed=1)).memory_state
        close(one.read(ids, memory_state=state).A, other.read(ids, memory_state=state).A)
    assert len(steps) == 2 * (
        segments - 3 - diagonal.DIRECT
    )  # of three layers: all full ones without the first segment


@pytest.mark.parametrize("family, recorded", [("llama", 1), ("falcon", 0)])
def test_a_recording_ends_with_its_text_and_is_not_made_of_what_copies_to_the_device(monkeypatch, family, recorded):
    monkeypatch.setattr(diagonal, "REPLAYED", {"cpu"})
    made = weakref.WeakSet()
    create, count = Steady.__init__, []
    monkeypatch.setattr(
        Steady, "__init__", lambda self, *args: made.add(self) or count.append(1) or create(self, *args)
    )
    model = make(family, executor="diagonal")
    gc.disable()
    try:
        model.read(tokens(2, 20 * SEGMENT))
        assert len(count) == recorded and not made
    finally:
        gc.enable()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_recorded_diagonals_give_the_same_outputs_and_memory_on_a_gpu(in_double):  # noqa: F811
    one, other = make().cuda(), make(executor="diagonal").cuda()
    ids = tokens(2, 40 * SEGMENT - 3).cuda()
    with torch.no_grad():
        assert_same(one(ids), other(ids))
        close(one.read(ids).A, other.read(ids).A)


def test_what_is_not_a_full_segment_compiles_nothing(graphs):
    one, other = make(), compiling(make())
    ids, mask, _ = padded([tokens(1, SEGMENT - 2), tokens(1, SEGMENT - 5, seed=1)], "left")
    close(one(ids, attention_mask=mask).logits[mask.bool()], other(ids, attention_mask=mask).logits[mask.bool()], 1e-5)
    written = [
        model.generate(tokens(1, 3), max_new_tokens=4, do_sample=False, pad_token_id=0) for model in (one, other)
    ]
    assert torch.equal(*written) and graphs.frame_count == 0


def test_auto_measures_once_for_a_shape_and_takes_the_faster(monkeypatch):
    model, measured = make(executor="auto"), []
    clock = iter(range(10_000))
    monkeypatch.setattr(auto.time, "perf_counter", lambda: next(clock))
    for name, order in model._faster_order.orders.items():

        def counted(*args, name=name, order=order, **options):
            measured.append(name)
            if name == "sequential":
                next(clock)  # one tick slower
            return order(*args, **options)

        model._faster_order.orders[name] = counted
    expected = make()(tokens(2, 5 * SEGMENT))
    for _ in range(2):
        assert_same(model(tokens(2, 5 * SEGMENT)), expected, 1e-5)
    runs = auto.WARM_UP + auto.REPEATS
    assert measured == runs * ["sequential", "diagonal"] + 2 * ["diagonal"]
    model(tokens(1, 5 * SEGMENT))
    assert len(model._faster_order.chosen) == 2


def test_measuring_leaves_no_gradient_and_draws_no_random_number():
    model = make(executor="auto").train()
    ids = tokens(2, 3 * SEGMENT)
    before = torch.get_rng_state()
    loss = model(ids, labels=ids).loss
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), before)
    loss.backward()
    _, expected = gradients(make(), ids)
    for name, parameter in model.named_parameters():
        close(parameter.grad, expected[name], 1e-4)


def test_auto_does_not_measure_where_there_is_no_choice():
    model = make(executor="auto")
    model(tokens(2, SEGMENT))
    ids, mask, _ = padded([tokens(1, 3 * SEGMENT), tokens(1, SEGMENT - 1, seed=1)], "left")
    model(ids, attention_mask=mask)
    assert model._faster_order.chosen == {}


@pytest.mark.parametrize(
    "options, compiles", [(dict(executor="diagonal"), False), (dict(executor="auto"), False), ({}, True)]
)
def test_layers_that_fsdp_would_split_are_refused_where_they_are_needed_whole(options, compiles):
    model = make(**options)
    if compiles:
        model.compile_cells()
    with pytest.raises(UserError, match="choose --engine ddp"):
        FsdpEngine.wrap(None, model, None)


@pytest.mark.parametrize("size, device, warns", [(528, "cuda", True), (512, "cuda", False), (528, "cpu", False)])
def test_segments_that_fill_no_tile_of_a_gpu_are_warned_of(monkeypatch, size, device, warns):
    said = []
    monkeypatch.setattr(layout.logger, "warning_once", said.append)
    layout.warn_of_size(size, torch.device(device))
    assert [text for text in said if "raise segment_size by 112" in text] == said and bool(said) == warns
