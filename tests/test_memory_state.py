"""The memory as a value: read, saved, forked, asked."""

import json
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import SEGMENT, WIDTH, backbone_config, close, make, shake, tokens

from lm_experiments_tools.data.tokenizer import train_tokenizer
from modeling_armt import ArmtForCausalLM, MemoryState, reading

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def short_pieces(monkeypatch):
    monkeypatch.setattr(reading, "SEGMENTS_AT_ONCE", 2)


def assert_equal(state, other):
    for mine, theirs in zip(state.unbind(), other.unbind(), strict=True):
        close(mine, theirs)
    assert torch.equal(state.segments_seen, other.segments_seen)


@pytest.mark.parametrize("alignment", ["left", "right"])
def test_reading_gives_the_memory_of_one_forward(kind, alignment, tmp_path):
    ids = tokens(1, 7 * SEGMENT + 2)
    expected = make(kind=kind)(ids).memory_state
    model = make(kind=kind, segment_alignment=alignment)
    mapped = np.memmap(tmp_path / "ids", dtype=np.uint16, mode="w+", shape=ids.shape[1])
    mapped[:] = ids[0].numpy()
    sources = {
        "tensor": ids,
        "one row": ids[0],
        "memory-mapped": np.memmap(tmp_path / "ids", dtype=np.uint16, mode="r"),
        "pieces": ids.split([1, 20, SEGMENT, 1, 3, 13], dim=1),
        "lists": iter([ids[0, :40].tolist(), ids[0, 40:].tolist()]),
    }
    for source in sources.values():
        assert_equal(model.read(source), expected)
    half = model.read(ids[:, : 3 * SEGMENT])
    assert_equal(model.read(ids[:, 3 * SEGMENT :], memory_state=half), expected)


def test_text_is_embedded_a_segment_at_a_time(kind, monkeypatch):
    """The embeddings of a whole piece would outlast it, beside those of the next."""
    model, sizes = make(kind=kind), []
    embed = model.family.embed
    monkeypatch.setattr(model.family, "embed", lambda ids: sizes.append(ids.shape[1]) or embed(ids))
    model.read(tokens(2, 5 * SEGMENT + 1))
    assert sizes == [SEGMENT] * 5 + [1]


def test_what_was_read_is_not_held(kind):
    model, held, most = make(kind=kind), [], 0

    def pieces():
        nonlocal most
        for seed in range(30):
            piece = tokens(2, SEGMENT, seed=seed)
            held.append(weakref.ref(piece))
            most = max(most, sum(reference() is not None for reference in held))
            yield piece

    state = model.read(pieces())
    assert most <= 3 and state.segments_seen.tolist() == [30, 30]
    assert state.nbytes == model.read(tokens(2, SEGMENT)).nbytes


@pytest.mark.parametrize("bars_of_transformers", [True, False])
@pytest.mark.parametrize("progress, shown", [(True, True), (False, False), (None, False)])
def test_reading_shows_its_rate_where_asked(progress, shown, bars_of_transformers, capsys, monkeypatch):
    monkeypatch.setattr("transformers.utils.logging._tqdm_active", bars_of_transformers)
    make().read(tokens(1, 3 * SEGMENT), progress=progress)
    assert ("reading: 100%" in capsys.readouterr().err) == shown


def test_a_forked_memory_answers_as_its_source(kind):
    model = make(kind=kind)
    books, questions = model.read(tokens(2, 3 * SEGMENT)), tokens(4, 5, seed=1)
    forked = books.repeat(2)
    together = model(questions, memory_state=forked).logits
    for row in range(4):
        alone = model(questions[row : row + 1], memory_state=books.select([row // 2])).logits
        close(together[row : row + 1], alone)
    assert torch.equal(forked.select([3]).unbind()[0], books.select(torch.tensor([1])).unbind()[0])


def test_a_memory_is_cut_from_its_graph_and_counts_its_bytes():
    model = make()
    state = model(tokens(2, SEGMENT)).memory_state
    assert state.A.requires_grad and not state.detach().A.requires_grad
    assert state.nbytes == 4 * 3 * 2 * 24 * (WIDTH + 1) + 2 * 8
    assert state.to("meta").A.device.type == "meta"


def test_a_saved_memory_loads_in_another_process(kind, tmp_path):
    model = make(kind=kind)
    model.save_pretrained(tmp_path / "model")
    state = model.read(tokens(2, 3 * SEGMENT))
    state.save(tmp_path / "memory.safetensors", model)
    question = tokens(2, 4)
    code = f"""
import json, torch
from transformers import AutoModelForCausalLM
import modeling_armt
model = AutoModelForCausalLM.from_pretrained({str(tmp_path / "model")!r}).eval()
state = model.state_class.load({str(tmp_path / "memory.safetensors")!r}, model)
print(json.dumps(model(torch.tensor({question.tolist()}), memory_state=state).logits.tolist()))
"""
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    close(torch.tensor(json.loads(printed)), model(question, memory_state=state).logits)


def test_a_memory_of_another_model_is_refused(tmp_path):
    model = make()
    path = tmp_path / "memory.safetensors"
    model.read(tokens(1, SEGMENT)).save(path, model)
    close(MemoryState.load(path, make().bfloat16()).A, model.read(tokens(1, SEGMENT)).A)
    for other, named in ((make(d_mem=5), "architecture"), (make("llama"), "architecture"), (make(kind="rmt"), "kind")):
        with pytest.raises(ValueError, match=f"memory of another model .*{named}"):
            other.state_class.load(path, other)
    trained = make()
    torch.nn.init.ones_(trained.memory_layers["1"].W_k)
    with pytest.raises(ValueError, match="memory_weights .* instead of"):
        MemoryState.load(path, trained)


@pytest.mark.parametrize(
    "source, message",
    [
        (torch.zeros(1, 0), "no token"),
        ([], "no token"),
        (5, "is a int"),
        ([torch.ones(1, 3), torch.ones(2, 3)], "2 rows; the ones before have 1"),
    ],
)
def test_what_cannot_be_read_is_refused(source, message):
    with pytest.raises(ValueError, match=message):
        make().read(source)


def run_script(*arguments):
    command = [sys.executable, str(ROOT / "scripts" / "read_once.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_a_book_is_read_once_and_asked_in_later_processes(tmp_path):
    text = " ".join(f"word{n} is no{n * n}." for n in range(4500))
    tokenizer = train_tokenizer([text[:20000]], "book", 300, tmp_path)
    config = backbone_config("llama")
    config.vocab_size, config.eos_token_id, config.pad_token_id = len(tokenizer), 1, 0
    model = ArmtForCausalLM.from_backbone(config, segment_size=16, num_mem_tokens=2, d_mem=4).eval()
    for folder in ("other", "model"):
        model.save_pretrained(tmp_path / folder)
        tokenizer.save_pretrained(tmp_path / folder)
        shake(model)
    model = ArmtForCausalLM.from_pretrained(tmp_path / "model").eval()
    (tmp_path / "book.txt").write_text(text)
    memory = tmp_path / "book.safetensors"
    read = run_script("read", tmp_path / "model", "--text", tmp_path / "book.txt", "--memory", memory)
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    assert f"{-(-ids.shape[1] // 16):,} segments" in read.stdout, read.stderr
    questions = ["word7 is", "what is word12? It is"]
    asked = run_script("ask", tmp_path / "model", "--memory", memory, *questions, "--max_new_tokens", 20)
    answers = [line.partition(" -> ")[2] for line in asked.stdout.splitlines()]
    state = MemoryState.load(memory, model)
    for question, answer in zip(questions, answers, strict=True):
        prompt = tokenizer(question, return_tensors="pt")["input_ids"]
        expected = model.generate(prompt, memory_state=state, max_new_tokens=20, do_sample=False)[0, prompt.shape[1] :]
        assert answer == " ".join(tokenizer.decode(expected, skip_special_tokens=True).split())
    refused = run_script("ask", tmp_path / "other", "--memory", memory, "word7 is")
    assert refused.returncode == 2 and "memory of another model" in refused.stderr
