"""The BABILong evaluation as a user starts it, on tiny models."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import shake
from transformers import LlamaConfig, LlamaForCausalLM

from lm_experiments_tools.data import babi, babi_simulator, embedded_text, tokenizer
from lm_experiments_tools.data.babilong_stream import Ring, make_sample
from lm_experiments_tools.errors import UserError
from lm_experiments_tools.evaluation import answering, babilong, official_files, prompts, published_samples
from lm_experiments_tools.evaluation.loading import load_model
from lm_experiments_tools.evaluation.published_samples import PublishedCorpus
from lm_experiments_tools.evaluation.samples import Corpus
from modeling_armt import ArmtForCausalLM

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """bAbI files, books, and two tiny models with a tokenizer: `armt` and `plain`."""
    folder = tmp_path_factory.mktemp("evaluation")
    for task in ("qa1", "qa2"):
        babi_simulator.write_task(folder / "babi", task, "test", 60, seed=1)
    questions = babi.read_questions(folder / "babi" / "qa1_single-supporting-fact_test.txt")
    books = folder / "books"
    books.mkdir()
    stream = embedded_text.sentences(seed=1)
    (books / "a.txt").write_text("\n".join(next(stream) for _ in range(1500)))
    texts = [f" {s}" for q in questions for s in (*q.facts, q.question, q.answer)]
    words = tokenizer.train_tokenizer([*texts, (books / "a.txt").read_text()], "evaluation", 900, folder / "cache")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=512, initializer_range=0.5,
        eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id, bos_token_id=words.eos_token_id,
    )  # fmt: skip
    armt = ArmtForCausalLM.from_backbone(config, segment_size=64, num_mem_tokens=2, d_mem=4)
    shake(armt).save_pretrained(folder / "armt")
    LlamaForCausalLM(config).save_pretrained(folder / "plain")
    for name in ("armt", "plain"):
        words.save_pretrained(folder / name)
    return folder


def words(folder, results, model="armt", **changes):
    values = dict(
        model=model and folder / model, model_name="org/tiny", results_folder=results,
        tasks=["qa1"], lengths=["0k", "1k"], num_samples=6, babi_path=folder / "babi",
        noise_dataset=[folder / "books"], data_cache=folder / "cache", max_new_tokens=4,
    )  # fmt: skip
    line = []
    for name, value in (values | changes).items():
        if value is not None:
            line += [f"--{name}", *map(str, value)] if isinstance(value, list) else [f"--{name}", str(value)]
    return line


def outputs(results):
    return {path.name: path.read_bytes() for path in (results / "org" / "tiny").iterdir()}


def corpus(folder, **changes):
    options = babilong.EvaluationArgs(
        model="x", babi_path=str(folder / "babi"), noise_dataset=[str(folder / "books")],
        data_cache=str(folder / "cache"), allow_repeat=True, **changes,
    )  # fmt: skip
    return Corpus(options, tokenizer.load_tokenizer(str(folder / "armt")), needs_background=True)


def test_an_evaluation_leaves_the_public_files_and_where_the_facts_are(folder, tmp_path):
    results = babilong.main(words(folder, tmp_path, tasks=["qa1", "qa2"]))
    assert {(r.task, r.length, r.score.samples) for r in results} == {
        (task, length, 6) for task in ("qa1", "qa2") for length in ("0k", "1k")
    }
    files = sorted((tmp_path / "org" / "tiny").glob("qa1_1k_*"))
    assert [file.suffix for file in files] == [".csv", ".json", ".jsonl"]
    settings = json.loads(files[1].read_text())
    assert settings["prompt"]["template"] == prompts.TRAINED_TEMPLATE
    assert settings["generate_kwargs"]["max_new_tokens"] == 4 and not settings["generate_kwargs"]["do_sample"]
    lines = [json.loads(line) for line in files[2].read_text().splitlines()]
    assert [line["index"] for line in lines] == list(range(6))
    assert {line["context_tokens"] for line in lines} == {700}  # 300 are left for prompt and question


def test_batches_and_restarts_give_the_same_files(folder, tmp_path):
    babilong.main(words(folder, tmp_path / "whole"))
    babilong.main(words(folder, tmp_path / "batch", batch_size=4))
    assert outputs(tmp_path / "batch") == outputs(tmp_path / "whole")
    babilong.main(words(folder, tmp_path / "parts", num_samples=2))
    path = next((tmp_path / "parts" / "org" / "tiny").glob("qa1_1k*.csv"))
    path.write_bytes(path.read_bytes()[:-3])  # killed in the middle of a row
    babilong.main(words(folder, tmp_path / "parts"))
    assert outputs(tmp_path / "parts") == outputs(tmp_path / "whole")


def test_a_finished_evaluation_does_not_ask_the_model_again(folder, tmp_path, monkeypatch):
    first = babilong.main(words(folder, tmp_path))
    monkeypatch.setattr(answering.StreamingAnswerer, "answer", lambda *args: pytest.fail("asked again"))
    assert babilong.main(words(folder, tmp_path)) == first


def test_two_evaluations_share_a_folder_but_not_a_task_at_a_length(folder, tmp_path):
    babilong.main(words(folder, tmp_path, lengths=["0k"], num_samples=2))
    path = next((tmp_path / "org" / "tiny").glob("qa1_0k*.csv"))
    before = path.read_bytes()
    prompt, settings = prompts.Prompt(), json.loads(path.with_suffix(".json").read_text())
    other = official_files.TaskFile(path.parent, "qa1", "0k", prompt, settings["generate_kwargs"])
    with other.prepared():
        with pytest.raises(UserError, match="another evaluation is writing .*qa1_0k.*csv; wait for it"):
            babilong.main(words(folder, tmp_path))
        assert path.read_bytes() == before
        babilong.main(words(folder, tmp_path, lengths=["1k"]))
    babilong.main(words(folder, tmp_path))
    babilong.main(words(folder, tmp_path / "alone"))
    assert outputs(tmp_path) == outputs(tmp_path / "alone")


def test_several_ranks_leave_the_files_of_one(folder, tmp_path):
    babilong.main(words(folder, tmp_path / "one"))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29613"]
    command += ["-m", "lm_experiments_tools.evaluation.babilong", *words(folder, tmp_path / "two")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    assert outputs(tmp_path / "two") == outputs(tmp_path / "one")


def test_streamed_answers_are_those_of_the_whole_input(folder):
    model, words_ = load_model(str(folder / "armt"), "modeling_armt")
    kwargs = dict(max_new_tokens=6, do_sample=False, pad_token_id=words_.pad_token_id, min_new_tokens=6)
    samples = corpus(folder, num_samples=5).samples("qa1", "1k", 700, prompts.Prompt())
    batch = [samples.sample(index) for index in range(5)]
    read = []
    streamed = answering.StreamingAnswerer(model, words_, kwargs).answer(batch, read.append)
    whole = answering.Answerer(model, words_, kwargs).generate([sample.read(0, sample.size) for sample in batch])
    assert streamed == whole and len(set(whole)) > 1
    assert sum(read) == sum(sample.size for sample in batch) == sum(map(samples.size, range(5)))


def test_a_sample_read_in_pieces_is_the_context_with_all_facts_where_it_says(folder):
    data = corpus(folder, num_samples=20)
    samples = data.samples("qa1", "1k", 700, prompts.Prompt())
    for index in range(20):
        sample, question = samples.sample(index), samples.questions[index]
        ids = sample.read(0, sample.size)
        for size in (1, 7, 64, 10_000):
            pieces = [sample.read(start, min(start + size, sample.size)) for start in range(0, sample.size, size)]
            assert (np.concatenate(pieces) == ids).all()
        assert sample.context[1] - sample.context[0] == 700
        text = data.tokenizer.decode(ids)
        place = -1
        for fact in question.facts:
            place = text.index(f" {fact}", place + 1)
        assert text.endswith(f" {question.question}GEN")
        for (start, stop), number in zip(sample.supporting, question.supporting):
            place = sample.context[0]
            assert data.tokenizer.decode(ids[place + start : place + stop]) == f" {question.facts[number]}"


def test_without_its_facts_a_context_is_a_stretch_of_the_text(folder):
    data = corpus(folder)
    text = np.concatenate(data.background.tokens)
    question = babi.Question((" x",), "Q?", "a", (0,), 0)
    fact, none = np.array([-1, -2]), np.empty(0, np.int64)
    for index in range(30):
        sample = make_sample(question, [fact], none, none, data.ring, len(text) * 2, (index,))
        ids = sample.read(0, sample.size)
        (start, stop), places = sample.supporting[0], np.flatnonzero(ids < 0)
        assert len(ids) == 2 * len(text) and (places == [start, start + 1]).all() and stop == start + 2
        rest = ids[ids >= 0]
        shift = next(s for s in data.ring.starts if (np.roll(text, -s)[:50] == rest[:50]).all())
        assert (rest == np.resize(np.roll(text, -shift), len(rest))).all()
        after = (shift + start) % len(text)
        assert start == len(rest) or after in data.ring.starts  # between sentences


def test_facts_stand_everywhere_in_the_context(folder):
    data = corpus(folder)
    rng = np.random.default_rng(0)
    places = np.concatenate([Ring.draw(data.ring, 5000, 3, rng)[1] for _ in range(500)]) / 5000
    assert np.allclose(np.histogram(places, 5, (0, 1))[0] / len(places), 0.2, atol=0.05)
    assert places.min() == 0 and places.max() == 1


def anonymous_kib():
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0])


class PeakMemory:
    """Most anonymous resident memory above that at the start, in MiB, and most of NumPy's, while the block runs."""

    def __enter__(self):
        self.start, self.peak, self.running = anonymous_kib(), 0, True
        self.thread = threading.Thread(target=self.watch)
        tracemalloc.start()
        self.thread.start()
        return self

    def watch(self):
        while self.running:
            self.peak = max(self.peak, anonymous_kib())
            time.sleep(0.005)

    def __exit__(self, *args):
        self.running = False
        self.thread.join()
        self.resident = (self.peak - self.start) / 1024
        self.traced = tracemalloc.get_traced_memory()[1] / 2**20
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_length(folder):
    model, words_ = load_model(str(folder / "armt"), "modeling_armt")
    model.config.segment_size = 512
    answerer = answering.StreamingAnswerer(model, words_, dict(max_new_tokens=2, pad_token_id=words_.pad_token_id))
    data = corpus(folder, num_samples=1)
    used = {}
    for size in (10_000, 10_000, 1_000_000):  # the first one warms up
        samples = data.samples("qa1", "-", size, prompts.Prompt())
        with PeakMemory() as used[size]:
            answerer.answer([samples.sample(0)], lambda tokens: None)
    assert used[1_000_000].traced < used[10_000].traced + 1  # the tokens alone would be 4 MB, their embeddings 64
    assert used[1_000_000].resident < used[10_000].resident + 16


def test_another_causal_model_is_cut_on_the_left_with_one_warning(folder, tmp_path, capsys, monkeypatch):
    seen = []
    generate = LlamaForCausalLM.generate
    monkeypatch.setattr(
        LlamaForCausalLM, "generate", lambda self, **kw: seen.append(kw["input_ids"]) or generate(self, **kw)
    )
    babilong.main(words(folder, tmp_path, "plain", lengths=["1k"], batch_size=2))
    name = "instruction_yes_examples_yes_post_prompt_yes_chat_template_no_system_prompt_no"
    assert (tmp_path / "org" / "tiny" / f"qa1_1k_{name}.csv").exists()
    assert [ids.shape for ids in seen] == [(2, 508)] * 3
    assert tokenizer.load_tokenizer(str(folder / "plain")).decode(seen[0][0]).endswith("?")
    assert capsys.readouterr().out.count("cut on the left to the 508 tokens") == 1


def test_a_chat_holds_the_context_in_the_users_message(folder):
    data = corpus(folder, num_samples=1)
    messages = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
    data.tokenizer.chat_template = messages + "{% if add_generation_prompt %}[go]{% endif %}"
    prompt = prompts.official_prompt("qa1", False, False, True, chat_template=True, system="Be brief")
    samples = data.samples("qa1", "1k", 700, prompt)
    text = data.tokenizer.decode(samples.sample(0).read(0, 10_000))
    assert text.startswith("[system]Be brief[user]Always return") and "\n\n<context>\n" in text
    assert text.endswith(f"\n</context>\n\nQuestion: {samples.questions[0].question}[go]")


WRONG = {
    "no model": (dict(model=None), "give --model"),
    "unknown task": (dict(tasks=["qa21"]), "no task 'qa21'; the tasks are qa1, qa2"),
    "unknown length": (dict(lengths=["1K"]), "no length '1K'; the lengths are 0k, 1k"),
    "no folder": (dict(model="/none/x"), "/none/x"),
    "no package": (dict(model_package="not_there"), "model_package not_there"),
    "short background": (dict(lengths=["1M"]), r"too short for 1M.*has [\d,]+ tokens.*999,700.*--allow_repeat"),
    "no task file": (dict(tasks=["qa3"]), "no bAbI file.*qa3"),
    "chat without template": (
        dict(prompt_style="official", use_chat_template=True, lengths=["0k"]), "chat_template",
    ),
    "system without chat": (dict(prompt_style="official", system_prompt="x"), "add --use_chat_template"),
    "num_samples": (dict(num_samples=0), "num_samples is 0"),
    "unknown ablation": (dict(ablate=["none,all"]), "no ablation 'all'"),
    "no other sample": (dict(ablate=["other"], num_samples=1), "num_samples must be at least 2"),
    "no memory to ablate": (dict(ablate=["zero"], model_type="hf", lengths=["0k"]), "ablate is for models with"),
    "no executor to choose": (dict(executor="diagonal", model="plain", lengths=["0k"]), "has no choice of it"),
    "contexts twice": (dict(dataset="x/y"), "leave out babi_path and noise_dataset"),
    "no such set": (dict(dataset="/none", babi_path=None, noise_dataset=None), "no such folder, and not the name"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_one_line_that_names_it(folder, tmp_path, case):
    changes, message = WRONG[case]
    with pytest.raises(UserError, match=message) as error:
        babilong.main(words(folder, tmp_path, **changes))
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("executor", ["diagonal", "auto"])
def test_the_order_of_the_cells_changes_no_answer(folder, tmp_path, executor):
    babilong.main(words(folder, tmp_path / "one", executor="sequential"))
    babilong.main(words(folder, tmp_path / "other", executor=executor))
    assert outputs(tmp_path / "one") == outputs(tmp_path / "other")


def test_results_of_another_model_or_seed_are_refused(folder, tmp_path):
    babilong.main(words(folder, tmp_path, lengths=["0k"], num_samples=1))
    with pytest.raises(UserError, match="holds other results: model was"):
        babilong.main(words(folder, tmp_path, "plain", lengths=["0k"]))
    with pytest.raises(UserError, match="seed was 42 there and is 7 now"):
        babilong.main(words(folder, tmp_path, lengths=["0k"], seed=7))
    with pytest.raises(UserError, match="other prompt or generation settings"):
        babilong.main(words(folder, tmp_path, lengths=["0k"], max_new_tokens=5))


def test_a_short_text_is_repeated_when_that_is_allowed(folder, tmp_path):
    (result,) = babilong.main(words(folder, tmp_path, lengths=["64k"], num_samples=1, allow_repeat=True))
    assert result.score.samples == 1


def test_without_task_files_the_tasks_are_simulated(folder, tmp_path):
    changes = dict(babi_path=None, lengths=["0k"], num_samples=2)
    first = babilong.main(words(folder, tmp_path / "a", **changes))
    assert babilong.main(words(folder, tmp_path / "b", **changes)) == first and first[0].score.samples == 2


def test_the_report_finds_the_results(folder, tmp_path):
    assert babilong.main(words(folder, tmp_path)) == [
        official_files.Result("tiny", *rest)
        for rest in [(r.setting, r.task, r.length, r.score) for r in official_files.read_folder(tmp_path)]
    ]


def test_ablated_answers_lie_below_the_true_ones(folder, tmp_path):
    babilong.main(words(folder, tmp_path / "true"))
    babilong.main(words(folder, tmp_path / "all", ablate=["none,zero", "other"]))
    model = tmp_path / "all" / "org" / "tiny"
    for name in ("zero", "other"):
        files = {path.name for path in (model / f"ablate_{name}").iterdir()}
        assert files == outputs(tmp_path / "true").keys()
    true = outputs(tmp_path / "true")
    assert {name: (model / name).read_bytes() for name in true} == true


def test_the_results_tell_what_the_model_was_trained_on(folder, tmp_path):
    step = tmp_path / "run" / "checkpoints" / "step-00000001"
    shutil.copytree(folder / "armt", step)
    (tmp_path / "run" / "best").symlink_to("checkpoints/step-00000001")
    (tmp_path / "run" / "config.yaml").write_text("max_n_segments: 4\nsegment_size: 64\nsample_size: null\n")
    babilong.main(words(folder, tmp_path, tmp_path / "run"))
    about = json.loads((tmp_path / "org" / "tiny" / official_files.CLAIM).read_text())["about"]
    assert about == {"segment_size": 64, "trained_tokens": 256}
    babilong.main(words(folder, tmp_path / "other"))
    about = json.loads((tmp_path / "other" / "org" / "tiny" / official_files.CLAIM).read_text())["about"]
    assert about == {"segment_size": 64, "trained_tokens": None}


@pytest.fixture(scope="module")
def published(folder, tmp_path_factory):
    """The first samples of qa1 at 1k as a published set holds them."""
    root = tmp_path_factory.mktemp("published")
    samples = corpus(folder, num_samples=6).samples("qa1", "1k", 700, prompts.Prompt())
    words_ = samples.corpus.tokenizer
    rows = []
    for index in range(6):
        sample = samples.sample(index)
        question, answer = samples.asked(index)
        text = words_.decode(sample.read(*sample.context)).strip()
        rows.append({"input": text, "question": f"{question} ", "target": answer})
    for length, some in {"1k": rows, "0k": rows[:4]}.items():
        (root / "data" / "qa1").mkdir(parents=True, exist_ok=True)
        (root / "data" / "qa1" / f"{length}.json").write_text(json.dumps(some))
    return root


@pytest.mark.parametrize("batch_size", [1, 4])
def test_published_contexts_are_answered_as_the_same_ones_made_here(folder, published, tmp_path, batch_size):
    own = {"babi_path": None, "noise_dataset": None, "dataset": published, "batch_size": batch_size}
    babilong.main(words(folder, tmp_path / "made", lengths=["1k"], allow_repeat=True))
    babilong.main(words(folder, tmp_path / "published", lengths=["1k"], ablate=["none", "other"], **own))
    made, found = (
        {path.relative_to(tmp_path / kind): path.read_text() for path in (tmp_path / kind).rglob("*.csv")}
        for kind in ("made", "published")
    )
    name, text = made.popitem()
    assert found[name].replace('? ",', '?",').replace("? \n", "?\n") == text  # questions are published with a space
    assert sorted(path.parent.name for path in found) == ["ablate_other", "tiny"]


def test_a_published_set_may_have_fewer_samples_and_goes_on_where_it_was(folder, published, tmp_path):
    own = {"babi_path": None, "noise_dataset": None, "dataset": published, "lengths": ["0k"]}
    babilong.main(words(folder, tmp_path, num_samples=2, **own))
    (result,) = babilong.main(words(folder, tmp_path, num_samples=9, **own))
    assert result.score.samples == 4


def test_a_long_text_is_tokenised_in_pieces_as_in_one(folder, published, monkeypatch):
    words_ = tokenizer.load_tokenizer(str(folder / "armt"))
    text = (folder / "books" / "a.txt").read_text().replace("\n", " ")
    monkeypatch.setattr(published_samples, "PIECE", 100)
    found = PublishedCorpus(str(published), words_, 1, 1).encode_long(text)
    assert found.tolist() == words_.encode(text, add_special_tokens=False)
