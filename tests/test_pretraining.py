"""The pre-training runner and its evaluation, as a user starts them."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_corpora import SEGMENT, TOKENS, llama, make_shared, prepare
from tiny_models import close
from transformers import AutoModelForCausalLM, LlamaForCausalLM

import run_pretraining as runner
from lm_experiments_tools import cli
from lm_experiments_tools.data import tokenizer
from lm_experiments_tools.data.corpus import Corpus
from lm_experiments_tools.data.language_modeling_task import LanguageModelingArgs, LanguageModelingTask
from lm_experiments_tools.distributed import make_engine
from lm_experiments_tools.errors import UserError
from lm_experiments_tools.evaluation import language_modeling as evaluation
from lm_experiments_tools.evaluation.ablation import parse_ablation
from lm_experiments_tools.evaluation.canvas import Curve, Point
from lm_experiments_tools.evaluation.loss_report import (
    Comparison,
    Measured,
    as_csv,
    cut_far,
    draw_by_segment,
    loss_table,
)
from lm_experiments_tools.evaluation.segment_losses import Windows, segment_losses, token_bytes
from modeling_armt import ArmtForCausalLM, RmtForCausalLM

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return make_shared(tmp_path_factory.mktemp("shared"))


def options(shared, run, **changes):
    values = dict(
        model_path=run, corpora=shared / "corpora" / "train", valid_corpora=shared / "corpora" / "test",
        model_cfg=shared / "llama", segment_size=SEGMENT, max_n_segments=4, num_mem_tokens=2, d_mem=4, iters=4,
        batch_size=4, lr=1e-3, valid_interval=2, valid_size=5, log_interval=1, save_interval=2, save_best=True,
    )  # fmt: skip
    words = []
    for name, value in (values | changes).items():
        if value is not None:
            words += [f"--{name}", *map(str, value)] if isinstance(value, list) else [f"--{name}", str(value)]
    return words


def test_a_run_leaves_losses_by_length_a_picture_and_a_loadable_model(shared, tmp_path, capsys):
    words = options(shared, tmp_path, test_n_segments=[1, 4, 6], test_size=7)
    metrics = runner.main(words)
    assert json.loads((tmp_path / "metrics.json").read_text())["test"] == metrics["test"]
    assert metrics["test"].keys() == {"1", "4", "6"}
    assert all(row["samples"] == 7 and 0 < row["loss"] < 7 for row in metrics["test"].values())
    assert (tmp_path / "loss.png").stat().st_size > 5000
    lines = loss_table(metrics).splitlines()
    assert len(lines) == 4 and lines[3].endswith("1.5x the longest trained")
    assert f"{math.exp(metrics['test']['1']['loss']):.3f}" in lines[1]
    assert ArmtForCausalLM.from_pretrained(tmp_path / "best").config.segment_size == SEGMENT
    capsys.readouterr()
    assert runner.main(words)["test"] == metrics["test"] and "is done" in capsys.readouterr().out


@pytest.mark.parametrize("changes", [
    dict(model_type="rmt"), dict(model_type="none"), dict(model_type="hf"),
    dict(k2=1, segment_checkpointing=True, mixed_precision="bf16", vary_n_segments=True),
    dict(corpora=["{train}=3", "{short}=1"]), dict(valid_corpora=None),
], ids=str)  # fmt: skip
def test_baselines_options_and_mixtures_train(shared, tmp_path, changes):
    names = {name: shared / "corpora" / name for name in ("train", "short")}
    changes = {k: [w.format(**names) for w in v] if isinstance(v, list) else v for k, v in changes.items()}
    metrics = runner.main(
        options(shared, tmp_path, **changes, lr=1e-2, iters=30, valid_interval=15, save_interval=None)
    )
    assert metrics["valid"]["loss"] < math.log(TOKENS) - 0.5


def test_a_run_that_was_stopped_ends_as_the_uninterrupted_one(shared, tmp_path):
    whole = runner.main(options(shared, tmp_path / "a"))
    runner.main(options(shared, tmp_path / "b", iters=2))
    again = runner.main(options(shared, tmp_path / "b"))
    assert again["valid"] == whole["valid"] and again["update"] == 4


def test_the_validation_loss_is_that_of_the_whole_logits(shared, tmp_path):
    metrics = runner.main(options(shared, tmp_path, test_n_segments=[3]))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "best").eval()
    corpus, size, nats, targets = Corpus(shared / "corpora" / "test"), 3 * SEGMENT, 0.0, 0
    with torch.no_grad():
        for number in range(len(corpus)):
            ids = torch.from_numpy(corpus.read(number).astype(np.int64))
            for start in range(0, len(ids) - 1, size - 1):
                part = ids[start : start + size]
                nats += F.cross_entropy(model(part[None]).logits[0, :-1], part[1:], reduction="sum").item()
                targets += len(part) - 1
    assert targets == corpus.sizes.sum() - len(corpus)
    assert metrics["test"]["3"]["loss"] == pytest.approx(nats / targets, rel=1e-5)


def test_documents_held_out_for_validation_are_not_trained_on(shared):
    args = LanguageModelingArgs(corpora=[str(shared / "corpora" / "train")], segment_size=SEGMENT, max_n_segments=4)
    task = LanguageModelingTask(args, 0, make_engine())
    corpus = Corpus(shared / "corpora" / "train")
    trained = task.train.datasets[0].corpus
    assert (trained.first, trained.stop) == (0, 5)
    last = bytes(corpus.read(5))
    assert all(bytes(task.valid[index][0]) in last for index in range(len(task.valid)))


def refusal(shared, run, **changes):
    with pytest.raises(UserError) as error:
        runner.main(options(shared, run, **changes))
    assert not (run / "checkpoints").exists() and not (run / "metrics.json").exists()
    return str(error.value)


def test_bad_input_is_named_before_anything_is_written(shared, tmp_path):
    run, corpora = tmp_path / "run", shared / "corpora"
    short = refusal(shared, run, corpora=corpora / "short")
    assert f"no document in {corpora / 'short'} has 4 segments of 16 tokens, the longest has" in short
    assert "lower valid_n_segments and test_n_segments" in refusal(shared, run, test_n_segments=[500])
    assert "is no prepared corpus; make one" in refusal(shared, run, corpora=shared / "train")
    assert "the weight 'x' is not a number" in refusal(shared, run, corpora=f"{corpora / 'train'}=x")
    assert "a weight, or none" in refusal(shared, run, corpora=[f"{corpora / 'train'}=1", corpora / "short"])
    prepare(shared / "train", tmp_path / "other", vocab_size=270)
    words = tmp_path / "other" / "tokenizer"
    other = refusal(shared, run, corpora=tmp_path / "other")
    assert other.startswith(f"{corpora / 'test'} was tokenised by another tokenizer than {words}: prepare it again")
    assert other.endswith(f"--tokenizer {words}")
    assert refusal(shared, run, tokenizer=words).endswith("or leave tokenizer out to take that of the first of corpora")
    prepare(shared / "test" / "7.txt" if (shared / "test" / "7.txt").exists() else shared / "test" / "0.txt",
            tmp_path / "one", tokenizer=str(shared / "tokenizer"))  # fmt: skip
    assert "give --valid_corpora" in refusal(shared, run, corpora=tmp_path / "one", valid_corpora=None)
    damaged = tmp_path / "one" / "shards" / "00000.tokens.npy"
    damaged.write_bytes(damaged.read_bytes()[:-2] + b"ab")
    assert f"{damaged} is damaged: its SHA-256" in refusal(shared, run, corpora=tmp_path / "one")


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "pretraining").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_configuration_makes_one_update(shared, tmp_path, path, monkeypatch):
    monkeypatch.setenv("CORPORA", str(tmp_path / "corpora"))
    monkeypatch.setenv("CORPUS", str(tmp_path / "corpora" / "corpus"))
    monkeypatch.setenv("BACKBONE", str(shared / "llama-weights"))
    config = cli.read_yaml(path)
    for name in {*config["corpora"], *config["valid_corpora"], *config.get("test_corpora", [])}:
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).symlink_to(shared / "corpora" / ("train" if "train" in name else "test"))
    tiny = dict(
        iters=1, batch_size=1, gradient_accumulation_steps=1, segment_size=SEGMENT, max_n_segments=2,
        test_n_segments=[2], test_size=1, valid_size=1, d_mem=4, num_mem_tokens=2, data_n_workers=0,
    )  # fmt: skip
    if config.get("from_pretrained") == "gpt2":
        tiny["from_pretrained"] = shared / "gpt2"
    words = options(shared, tmp_path / "run", **dict.fromkeys(options_names(shared), None) | tiny)
    metrics = runner.main(["--config", str(path), *words, "--model_path", str(tmp_path / "run")])
    assert metrics["update"] == 1 and metrics["test"]["2"]["samples"] == 1
    assert metrics["config"]["lr"] == float(config["lr"])


def options_names(shared):
    return [word[2:] for word in options(shared, "run") if word.startswith("--")]


def memory_model(kind=ArmtForCausalLM, **changes):
    torch.manual_seed(3)
    more = dict(d_mem=4) if kind is ArmtForCausalLM else {}
    model = kind.from_backbone(llama(**changes), segment_size=SEGMENT, num_mem_tokens=2, **more).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("kind", [ArmtForCausalLM, RmtForCausalLM])
def test_losses_by_segment_equal_a_hand_computation(shared, kind):
    """From one pass over whole windows; without memory, from each segment alone; frozen, from its first segment."""
    model, corpus = memory_model(kind), Corpus(shared / "corpora" / "test")
    windows = Windows([corpus], 3, SEGMENT, number=4)
    found = {
        name: torch.from_numpy(segment_losses(model, windows, parse_ablation(name), 2, False, name))
        for name in ("none", "zero", "freeze:1", "other")
    }
    ids = torch.from_numpy(np.concatenate(list(windows.batches(2))))
    assert ids.shape == (4, 3 * SEGMENT + 1)
    targets = ids[:, 1:]

    def nats(logits, targets):
        return F.cross_entropy(logits.transpose(1, 2), targets, reduction="none").sum(1).double()

    def column(number):
        return slice(number * SEGMENT, (number + 1) * SEGMENT)

    with torch.no_grad():
        whole = model(ids[:, :-1]).logits
        memories = [model(ids[:, : number * SEGMENT]).memory_state for number in (1, 2)]
        for number in range(3):
            part = column(number)
            close(found["none"][:, number], nats(whole[:, part], targets[:, part]), 1e-3)
            alone = nats(model(ids[:, part]).logits, targets[:, part])
            close(found["zero"][:, number], alone, 1e-3)
            if number:
                kept = model(ids[:, part], memory_state=memories[0]).logits
                close(found["freeze:1"][:, number], nats(kept, targets[:, part]), 1e-3)
                theirs = memories[number - 1].select([1, 0, 3, 2])  # of the other window of the batch
                other = model(ids[:, part], memory_state=theirs).logits
                close(found["other"][:, number], nats(other, targets[:, part]), 1e-3)
    assert (found["none"] - found["zero"])[:, 1:].abs().min() > 1e-3
    close(found["none"][:, 0], found["zero"][:, 0])


def test_a_model_that_reads_whole_is_cut_at_its_positions(shared, capsys):
    model = LlamaForCausalLM(llama(max_position_embeddings=2 * SEGMENT)).eval()
    windows = Windows([Corpus(shared / "corpora" / "test")], 3, SEGMENT, number=2)
    found = segment_losses(model, windows, parse_ablation("none"), 2, False, "full")
    ids = torch.from_numpy(next(windows.batches(2)))[:, : 2 * SEGMENT + 1]
    with torch.no_grad():
        losses = F.cross_entropy(model(ids[:, :-1]).logits.transpose(1, 2), ids[:, 1:], reduction="none")
    np.testing.assert_allclose(found[:, :2], losses.view(2, 2, SEGMENT).sum(2), rtol=1e-5)
    assert np.isnan(found[:, 2]).all() and "positions for 2 of 3 segments" in capsys.readouterr().out


def test_bytes_of_tokens_add_up_to_the_text(shared):
    words = tokenizer.load_tokenizer(str(shared / "tokenizer"))
    for content in ("Ann saw the ship.", "Ünïcode 漢字 …\n\n€"):
        assert token_bytes(words)[words.encode(content)].sum() == len(content.encode())
    assert token_bytes(words)[words.eos_token_id] == 0
    corpus = Corpus(shared / "corpora" / "test")
    windows = Windows([corpus], 1, 1)
    assert windows.num_bytes(words).sum() == pytest.approx(corpus.bytes.sum() - sum(
        token_bytes(words)[corpus.read(number, 0, 1)].sum() for number in range(len(corpus))
    ))  # fmt: skip


def test_windows_are_each_read_once_and_cover_the_documents(shared):
    corpus = Corpus(shared / "corpora" / "test")
    windows = Windows([corpus, corpus], 2, SEGMENT)
    found = sorted(bytes(row) for batch in windows.batches(3) for row in batch.astype(np.uint16))
    expected = []
    for number in range(len(corpus)):
        ids = corpus.read(number)
        expected += [bytes(ids[s : s + 33]) for s in range(0, len(ids) - 32, 32)]
    assert found == sorted(expected * 2)
    with pytest.raises(UserError, match="no document has 900 segments of 16 tokens and one more, the longest has"):
        Windows([corpus], 900, SEGMENT)


def test_bits_intervals_and_what_a_memory_is_worth_by_hand(tmp_path):
    nats = np.log(2) * np.array([[8.0, 4.0], [8.0, 8.0]])
    own, without = Measured("a", "none", nats, 1.0), Measured("a", "zero", nats + np.log(2) * np.array([0.0, 2.0]), 1.0)
    compared = Comparison([own, without], np.array([[4.0, 4.0], [4.0, 4.0]]), 2)
    last, whole = slice(1, 2), slice(None)
    assert compared.bits(own, whole).mean == pytest.approx(28 / 16)
    assert compared.bits(own, last).mean == pytest.approx(12 / 8)
    assert compared.bits(own, last).half == pytest.approx(1.959964 * np.std([1.0, 2.0], ddof=1) / np.sqrt(2))
    assert compared.lost(without, last) == pytest.approx((0.5, 0.0))
    assert compared.loss(own, whole) == pytest.approx(np.log(2) * 28 / 8)
    assert list(compared.parts()) == ["1–2", "1–1", "2–2"]
    assert as_csv(compared).splitlines()[4].startswith("a,zero,2,2.000000")
    draw_by_segment(compared, "two segments", [tmp_path / "loss.png"])
    assert (tmp_path / "loss.png").stat().st_size > 5000


def test_a_picture_leaves_out_what_would_make_the_rest_look_alike():
    def curve(name, *values):
        return Curve(name, [Point(x, y, y, y) for x, y in enumerate(values)])

    low, near, far = curve("low", 1.9, 2.0), curve("near", 2.1, 2.2), curve("far", 1.8, 9.0)
    shown, cut = cut_far([low, near, far])
    assert shown[:2] == [low, near] and cut == {"far": 9.0}
    assert shown[2].points[0] == far.points[0] and math.isnan(shown[2].points[1].y)


def test_the_command_compares_models_and_names_bad_input(shared, tmp_path):
    runs = {kind: tmp_path / kind for kind in ("armt", "none", "hf")}
    for kind, run in runs.items():
        runner.main(options(shared, run, model_type=kind, iters=1, valid_interval=1, save_interval=None))
    named = [f"{kind}={run}" for kind, run in runs.items()]
    test = str(shared / "corpora" / "test")
    words = ["--models", *named, "--data", test, "--segments", "5", "--ablate", "zero", "--num_samples", "6"]
    compared = evaluation.main([*words, "--batch_size", "3", "--output", str(tmp_path / "out")])
    names = [result.name for result in compared.results]
    assert names == ["armt", "armt, memory zero", "none", "hf"]
    assert all(result.nats.shape == (6, 5) and result.trained_segments == 4 for result in compared.results)
    page = (tmp_path / "out" / "index.md").read_text()
    assert "6 windows of 5 segments of 16 tokens" in page and page.count("| armt |") == 4  # three parts, and a heading
    bits, perplexity = page.splitlines()[-1].split("|")[2].split("/")
    last, nats = slice(4, 5), compared.results[0].nats[:, 4].mean() / 16
    assert float(bits) == pytest.approx(compared.bits(compared.results[0], last).mean, abs=1e-4)
    assert float(perplexity) == pytest.approx(math.exp(nats), abs=0.01)
    assert len((tmp_path / "out" / "losses.csv").read_text().splitlines()) == 1 + 4 * 5
    assert (tmp_path / "out" / "loss.png").stat().st_size > 10_000

    def refused(*changes):
        with pytest.raises(UserError) as error:
            evaluation.main([*words, *map(str, changes)])
        return str(error.value)

    assert "no ablation 'half'" in refused("--ablate", "half")
    assert "has segments of 16 tokens, not 8" in refused("--segment_size", 8)
    assert "give --segment_size" in refused("--models", named[2])
    assert "is no prepared corpus" in refused("--data", shared / "train")
    prepare(shared / "test", tmp_path / "other", vocab_size=270)
    assert "another tokenizer than" in refused("--data", tmp_path / "other")
