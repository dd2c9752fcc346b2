"""lm-evaluation-harness with recurrent models and our BABILong tasks, on a tiny model and a local set."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_models import KINDS, shake
from tiny_sets import SENTENCES, story, whole_prompt, write_set
from transformers import LlamaConfig, LlamaForCausalLM

from lm_experiments_tools.data import tokenizer
from lm_experiments_tools.data.babilong_sets import LENGTHS
from lm_experiments_tools.errors import UserError
from lm_experiments_tools.evaluation import lm_eval_harness, lm_eval_tasks
from lm_experiments_tools.evaluation.prompts import DEFAULTS
from lm_experiments_tools.evaluation.scoring import ROOMS, officially_right, strictly_right

lm_eval = pytest.importorskip("lm_eval", reason="lm_eval is not installed: pip install 'lm_eval[hf]'")

ROOT = Path(__file__).parents[1]
TASKS = ROOT / "configs" / "lm_eval"
SEGMENT, POSITIONS = 16, 32


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    texts = [*SENTENCES, "Where is Mary?", *(part for parts in DEFAULTS.values() for part in parts)]
    return tokenizer.train_tokenizer(texts, "lm_eval", 900, tmp_path_factory.mktemp("tokenizer"))


def make(words, kind):
    """A model whose backbone has far fewer positions than a prompt has tokens, and which likes to name rooms."""
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=POSITIONS, initializer_range=0.1,
        eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id, bos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    model_class, options = KINDS[kind]
    model = shake(model_class.from_backbone(config, segment_size=SEGMENT, num_mem_tokens=2, **options)).eval()
    rooms = [words.encode(f" {room}", add_special_tokens=False)[0] for room in ROOMS]
    with torch.no_grad():
        model.get_output_embeddings().weight[rooms] *= 16
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory, words):
    """A run with its best model, and qa1 and qa2 at two lengths."""
    folder = tmp_path_factory.mktemp("lm_eval")
    make(words, "armt").save_pretrained(folder / "armt" / "best")
    words.save_pretrained(folder / "armt" / "best")
    for task in ("qa1", "qa2"):
        write_set(folder, task, "0k", [2, 3, 5, 2])
        write_set(folder, task, "1k", [30, 31, 38, 33])
    return folder


@pytest.fixture(scope="module")
def lms(words):
    made = {}

    def get(kind, batch_size=1, **options):
        key = (kind, batch_size, *options.items())
        if key not in made:
            model = make(words, kind)
            made[key] = lm_eval_harness.register()(
                pretrained=model, tokenizer=words, batch_size=batch_size, device="cpu", **options
            )
        return made[key]

    return get


def manager(folder, **metadata):
    from lm_eval.tasks import TaskManager

    metadata = {"data": str(folder), "lengths": ["0k", "1k"]} | metadata
    return TaskManager(include_path=str(TASKS), include_defaults=False, metadata=metadata)


def evaluate(folder, tasks=("babilong_official_qa1",), limit=None, batch_size=3, **metadata):
    lm_eval_harness.register()
    return lm_eval.simple_evaluate(
        "armt", model_args={"pretrained": str(folder / "armt")}, tasks=list(tasks), device="cpu",
        batch_size=batch_size, limit=limit, task_manager=manager(folder, **metadata), bootstrap_iters=0,
    )  # fmt: skip


def ask(lm, kind, *requests):
    from lm_eval.api.instance import Instance

    instances = [Instance(kind, {}, arguments, index) for index, arguments in enumerate(requests)]
    return getattr(lm, kind)(instances, disable_tqdm=True)


def own_scores(folder, lm, task, length):
    """Shares of right answers of the model when each prompt is one input."""
    rows = json.loads((folder / "data" / task / f"{length}.json").read_text())
    right = []
    for row in rows:
        ids = lm.tokenizer(whole_prompt(task, row), return_tensors="pt").input_ids
        written = lm.model.generate(ids, max_new_tokens=20, do_sample=False)[0, ids.shape[1] :]
        output = lm.tokenizer.decode(written, skip_special_tokens=True)
        question, target = row["question"], row["target"]
        right.append((officially_right(task, target, output, question), strictly_right(target, output)))
    return [sum(column) / len(rows) for column in zip(*right)]


def test_scores_are_those_of_our_scorer_on_whole_inputs(folder, lms):
    results = evaluate(folder, ["babilong_official_qa1", "babilong_official_qa2"])["results"]
    scores = []
    for task in ("qa1", "qa2"):
        found = results[f"babilong_official_{task}"]
        for length in ("0k", "1k"):
            official, strict = own_scores(folder, lms("armt"), task, length)
            assert found[f"official_{length},none"] == official and found[f"strict_{length},none"] == strict
            scores.append(official)
        assert not [name for name in found if "_2k" in name]  # lengths that were not asked for have no metric
    assert max(scores) > 0 and min(scores) < 1


def test_the_command_line_gives_the_same_scores(folder, tmp_path):
    command = [
        sys.executable, "-m", "lm_experiments_tools.evaluation.lm_eval_harness", "--model", "armt",
        "--model_args", f"pretrained={folder / 'armt'}", "--include_path", str(TASKS),
        "--tasks", "babilong_official_qa1", "--batch_size", "3", "--output_path", str(tmp_path),
        "--metadata", json.dumps({"data": str(folder), "lengths": ["0k", "1k"]}),
    ]  # fmt: skip
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "|official_0k" in done.stdout and "Truncat" not in done.stderr
    (path,) = tmp_path.rglob("results_*.json")
    written = json.loads(path.read_text())["results"]["babilong_official_qa1"]
    expected = evaluate(folder)["results"]["babilong_official_qa1"]
    assert {name: expected[name] for name in written if "k,none" in name} == {
        name: value for name, value in written.items() if "k,none" in name
    }


def test_generation_is_that_of_each_whole_prompt_whatever_the_batch(kind, lms):
    prompts = [story(sentences, sentences) for sentences in (1, 60, 3, 61, 7)]
    settings = {"max_gen_toks": 2 * SEGMENT, "until": ["zzz"], "do_sample": False}
    lm = lms(kind)
    expected = []
    for prompt in prompts:
        ids = lm.tokenizer(prompt, return_tensors="pt").input_ids
        written = lm.model.generate(ids, max_new_tokens=2 * SEGMENT, do_sample=False)
        expected.append(lm.tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True))
    assert len(set(expected)) > 1
    for batch_size in (1, 5):
        found = ask(lms(kind, batch_size), "generate_until", *[(prompt, settings) for prompt in prompts])
        assert found == expected
    stop = expected[1][8:12]
    (cut,) = ask(lm, "generate_until", (prompts[1], settings | {"until": [stop]}))
    assert cut == expected[1].split(stop)[0]


def likelihood(lm, context, continuation):
    """From the logits of one whole input."""
    ids = torch.tensor([context + continuation])
    logits = lm.model(ids).logits[0, len(context) - 1 : -1].log_softmax(-1)
    targets = torch.tensor(continuation)
    return logits.gather(1, targets.unsqueeze(1)).sum().item(), bool((logits.argmax(-1) == targets).all())


def test_loglikelihoods_are_those_of_whole_inputs(kind, lms):
    lm = lms(kind)
    contexts = [story(sentences, sentences) for sentences in (1, 50, 9, 50)]
    pairs = [(context, f" {room}") for context in contexts for room in (*ROOMS[:2], story(12, 5))]
    greedy_ids = lm.model.generate(torch.tensor([lm.tok_encode(contexts[1])]), max_new_tokens=1, do_sample=False)
    pairs.append((contexts[1], lm.tokenizer.decode(greedy_ids[0, -1:])))
    expected = [likelihood(lm, *lm._encode_pair(*pair)) for pair in pairs]
    alone = lm.tok_encode("Mary went")
    pairs.append(("", "Mary went"))
    expected.append(likelihood(lm, [lm.prefix_token_id], alone))
    for batch_size in (1, 4):
        found = ask(lms(kind, batch_size), "loglikelihood", *pairs)
        assert [sum_ for sum_, _ in found] == pytest.approx([sum_ for sum_, _ in expected], abs=1e-3)
        assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert expected[-2][1] and not all(greedy for _, greedy in expected)


def test_rolling_scores_a_document_with_its_memory(kind, lms):
    texts = [story(sentences, sentences) for sentences in (1, 40, 10)]
    lm = lms(kind)
    expected = [likelihood(lm, [lm.prefix_token_id], lm.tok_encode(text))[0] for text in texts]
    for batch_size in (1, 3):
        found = ask(lms(kind, batch_size), "loglikelihood_rolling", *[(text,) for text in texts])
        assert found == pytest.approx(expected, abs=1e-3)
    windows = ask(lms(kind, 1, max_length=SEGMENT), "loglikelihood_rolling", (texts[1],))
    assert abs(windows[0] - expected[1]) > 1  # cut, as asked for


class Sizes:
    """Positions that are embedded at once, and how many in all, while the block runs."""

    def __init__(self, lm):
        self.embeddings = lm.model.get_input_embeddings()

    def __enter__(self):
        self.widest = self.total = 0
        self.hook = self.embeddings.register_forward_hook(self.count)
        return self

    def count(self, module, inputs, output):
        self.widest, self.total = max(self.widest, inputs[0].shape[1]), self.total + inputs[0].numel()

    def __exit__(self, *args):
        self.hook.remove()


def test_a_long_input_is_read_whole_and_in_small_pieces(lms):
    lm, text = lms("armt", 2), story(800, 1)
    size = len(lm.tok_encode(text))
    assert size > 100 * POSITIONS and lm.max_length > 50_000_000
    for kind, arguments in (
        ("generate_until", (text, {"max_gen_toks": 4, "until": []})),
        ("loglikelihood", (text, " kitchen")),
        ("loglikelihood_rolling", (text,)),
    ):
        with Sizes(lm) as sizes:
            ask(lm, kind, arguments, (arguments[0][: len(text) // 2], *arguments[1:]))
        assert sizes.total >= 1.4 * size and sizes.widest <= 64 * SEGMENT


def test_requests_of_a_batch_that_begin_alike_read_it_once(lms):
    lm, text = lms("armt", 4), story(100, 1)
    with Sizes(lm) as sizes:
        answers = ask(lm, "loglikelihood", *[(text, f" {room}") for room in ROOMS[:4]])
    assert sizes.total < len(lm.tok_encode(text)) + 8 * SEGMENT and len(set(answers)) == 4


def test_every_task_file_is_of_its_own_task(tmp_path):
    tasks = [f"qa{number}" for number in range(1, 21)]
    rows = {task: write_set(tmp_path, task, "0k", [3]) for task in tasks}
    loaded = manager(tmp_path, lengths="0k").load([f"babilong_official_{task}" for task in tasks])["tasks"]
    for task in tasks:
        made = loaded[f"babilong_official_{task}"]
        (document,) = made.eval_docs
        assert document["task"] == task and made.fewshot_context(document, 0) == whole_prompt(task, rows[task][0])


def test_all_lengths_can_be_asked_for_in_one_run(folder, tmp_path):
    (tmp_path / "armt").symlink_to(folder / "armt")
    for length in LENGTHS:
        write_set(tmp_path, "qa1", length, [1])
    results = evaluate(tmp_path, lengths=list(LENGTHS), prompt="trained")
    assert {f"official_{length},none" for length in LENGTHS} < results["results"]["babilong_official_qa1"].keys()
    for sample in results["samples"]["babilong_official_qa1"]:
        assert sample["arguments"][0][0] == f" {story(1, 0)} Where is Mary?GEN"


def test_the_group_is_the_mean_of_the_first_five_tasks(folder, tmp_path):
    (tmp_path / "armt").symlink_to(folder / "armt")
    for number in range(1, 6):
        write_set(tmp_path, f"qa{number}", "0k", [2, 3, 5, 2, 4][:number])
    results = evaluate(tmp_path, ["babilong_official"], batch_size=8, lengths="0k")["results"]
    shares = [results[f"babilong_official_qa{number}"]["official_0k,none"] for number in range(1, 6)]
    assert results["babilong_official"]["official_0k,none"] == pytest.approx(sum(shares) / 5)
    assert len(set(shares)) > 1


def test_a_limit_takes_from_all_lengths(folder):
    found = evaluate(folder, limit=4)["samples"]["babilong_official_qa1"]
    assert [sample["doc"]["length"] for sample in found] == ["0k", "1k", "0k", "1k"]


def test_without_a_folder_the_data_is_that_of_the_hub(monkeypatch):
    asked = []

    def find(name, length, task):
        asked.append((name, length, task))
        raise UserError("no network")

    monkeypatch.setattr(lm_eval_tasks, "OfficialSet", find)
    from lm_eval.tasks import TaskManager

    tasks = TaskManager(include_path=str(TASKS), include_defaults=False, metadata={"lengths": "10M"})
    with pytest.raises(UserError, match="no network"):
        tasks.load(["babilong_official_qa7"])
    assert asked == [("RMT-team/babilong", "10M", "qa7")]


def test_a_wrong_model_is_one_line_that_names_it(folder, words, tmp_path):
    model_class = lm_eval_harness.register()
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "plain")
    words.save_pretrained(tmp_path / "plain")
    for options, message in (
        (dict(pretrained=str(tmp_path / "plain")), "LlamaForCausalLM has no `read`.*--model hf"),
        (dict(pretrained=str(folder / "armt"), batch_size="auto"), "batch_size auto .* give a number"),
        (dict(pretrained=str(tmp_path)), "config"),
        (dict(pretrained=str(folder / "armt"), model_package="not_there"), "not_there"),
    ):
        with pytest.raises(UserError, match=message) as error:
            model_class(device="cpu", **options)
        assert "\n" not in str(error.value)
