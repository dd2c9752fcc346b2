"""Run folders, files and samples that are wrong: one line names them, the exit code is 2, nothing is trained and
nothing in them is executed."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_task
import torch
from transformers import LlamaConfig

import run_finetuning_babilong as runner
from lm_experiments_tools import checkpoint, cli
from lm_experiments_tools.args import TrainerArgs
from lm_experiments_tools.errors import UserError
from lm_experiments_tools.trainer import Trainer

ROOT = Path(__file__).parents[2]
SENTENCE = "It was the best of times and it was the worst of times, as he said. "


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A tiny backbone, background text and a cache for prepared data."""
    folder = tmp_path_factory.mktemp("shared")
    (folder / "books.txt").write_text(SENTENCE * 200)
    LlamaConfig(
        vocab_size=300, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=128,
    ).save_pretrained(folder / "tiny")  # fmt: skip
    return folder


@pytest.fixture
def words(shared):
    """Command line of a tiny run, with changes."""

    def of(run, **changes):
        values = dict(
            model_path=run, model_cfg=shared / "tiny", data_cache=shared / "cache", vocab_size=1000, segment_size=48,
            num_mem_tokens=2, d_mem=4, max_n_facts=4, simulated_questions=200, valid_size=20, test_size=10, iters=2,
            batch_size=2, lr=1e-3, valid_interval=1, log_interval=1, save_best=True,
            noise_dataset=shared / "books.txt",
        )  # fmt: skip
        return [f"--{name}={value}" for name, value in (values | changes).items() if value is not None]

    return of


@pytest.fixture
def error_of(words, capfd):
    """What the program writes when it refuses a run."""

    def of(run, **changes):
        with pytest.raises(SystemExit) as ended:
            cli.run(lambda: runner.main(words(run, **changes)))
        return the_line(ended.value.code, capfd.readouterr().err)

    return of


@pytest.fixture
def refusal(error_of):
    """`error_of` a new run, which ends before its first update."""

    def of(run, **changes):
        line = error_of(run, **changes)
        assert not {path.name for path in run.glob("*")} & {"checkpoints", "best", "log.jsonl", "metrics.json"}
        return line

    return of


def the_line(code, stderr):
    lines = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert code == 2 and len(lines) == 1 and "Traceback" not in stderr, stderr
    return lines[0]


class Payload:
    """Whoever executes its pickle leaves a folder."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


# root may write everywhere: its process goes without that right
UNPRIVILEGED = ["setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override"] if os.geteuid() == 0 else []


@pytest.mark.case(20, "a run folder that cannot be written ends the process before data or model are read")
@pytest.mark.parametrize("layout", ["new", "used before"])
def test_a_read_only_run_folder_is_named_before_anything_is_read(words, tmp_path, layout):
    run = tmp_path / "runs" / "run"
    read_only = run.parent if layout == "new" else run
    read_only.mkdir(parents=True)
    if layout == "used before":
        (run / "run.lock").touch()  # can be opened as before
    read_only.chmod(0o555)
    absent = dict(babi_path=tmp_path / "no-data", model_cfg=tmp_path / "no-model", data_cache=tmp_path / "cache")
    command = [*UNPRIVILEGED, sys.executable, "run_finetuning_babilong.py", *words(run, **absent)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert str(run) in the_line(done.returncode, done.stderr)
    assert not (tmp_path / "cache").exists()


@pytest.mark.case(20, "a run folder that cannot be made ends the process before data or model are read")
def test_a_run_folder_below_a_file_is_named_before_anything_is_read(error_of, tmp_path):
    (tmp_path / "file").touch()
    line = error_of(tmp_path / "file" / "run", babi_path=tmp_path / "no-data", data_cache=tmp_path / "cache")
    assert str(tmp_path / "file") in line and not (tmp_path / "cache").exists()


STORY = "1 Mary moved to the office.\n2 Where is Mary? \toffice\t1\n"
LONG_STORY = "".join(f"{line} Mary moved to the hall.\n" for line in range(1, 16)) + "16 Where is Mary? \thall\t15\n"


def babi_folder(folder, train, test=STORY):
    folder.mkdir(parents=True)
    for split, content in (("train", train), ("test", test)):
        content = content if isinstance(content, bytes) else content.encode()
        (folder / f"qa1_single-supporting-fact_{split}.txt").write_bytes(content)
    return folder


@pytest.mark.case(22, "an empty validation or test set is refused, with the option that makes it empty")
def test_an_empty_validation_or_test_set_is_refused(refusal, tmp_path):
    assert "valid_size is 0" in refusal(tmp_path / "run", valid_size=0)
    assert "test_size is 0" in refusal(tmp_path / "run", test_size=0)
    folder = babi_folder(tmp_path / "babi", STORY * 20 + LONG_STORY)
    line = refusal(tmp_path / "run", babi_path=folder, max_n_facts=None, valid_size=1, long_samples="skip")
    assert f"long_samples skip leaves none of 1 questions ({folder}" in line and "line 56, ...)" in line


@pytest.mark.case(22, "the Trainer refuses an empty validation set before the first update, unless it is never used")
def test_a_trainer_needs_validation_samples_only_to_validate(tmp_path):
    def trainer(**options):
        model, empty = tiny_task.TinyModel(), tiny_task.TinyData(size=0)
        args = TrainerArgs(model_path=str(tmp_path), iters=2, lr=0.1, **options)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return Trainer(args, model, optimizer, tiny_task.TinyData(), empty, collate_fn=tiny_task.collate)

    with pytest.raises(UserError, match="valid_interval is set, but there is no validation sample"):
        trainer(valid_interval=1, save_best=True)
    assert not list(tmp_path.iterdir())
    progress = trainer().train()
    assert progress.update == 2 and progress.best_metric is None and not (tmp_path / "best").is_symlink()


@pytest.mark.case(23, "a sample over the limit is named with file, line, length and limit")
def test_a_sample_over_the_limit_is_named(refusal, tmp_path):
    folder = babi_folder(tmp_path / "babi", STORY * 20 + LONG_STORY + STORY * 30)
    line = refusal(tmp_path / "run", babi_path=folder, max_n_facts=None, sample_size=40)
    place = f"sample 20 ({folder}/qa1_single-supporting-fact_train.txt, line 56: "
    assert f"sample_size 40 is smaller than the facts of {place}" in line and " tokens, 15 facts)" in line


@pytest.mark.case(23, "if asked for, long samples are skipped or lose their earliest facts, and are counted once")
@pytest.mark.parametrize("choice, said, tested", [("skip", "left out", 2), ("truncate", "cut to their last facts", 3)])
def test_long_samples_are_skipped_or_truncated_if_asked_for(words, tmp_path, capfd, choice, said, tested):
    folder = babi_folder(tmp_path / "babi", (STORY * 10 + LONG_STORY) * 4 + STORY * 20, STORY * 2 + LONG_STORY)
    metrics = runner.main(words(tmp_path / "run", babi_path=folder, max_n_facts=None, long_samples=choice))
    assert metrics["test"]["1"]["samples"] == tested and metrics["update"] == 2
    printed = capfd.readouterr().out
    assert printed.count(f"long_samples {choice}: questions {said}: 4 training, 1 test 1\n") == 1
    assert printed.count("long_samples") == 1


@pytest.mark.case(24, "a background that is too short is refused with both numbers, or repeated if asked for")
def test_a_short_background_is_refused_or_repeated_if_asked_for(refusal, words, tmp_path):
    text = tmp_path / "short.txt"
    text.write_text(SENTENCE * 20)
    options = dict(noise_dataset=text, max_n_segments=12)
    line = refusal(tmp_path / "run", **options)
    assert "background text too short" in line and " tokens, a sample needs 56" in line and "repeat_background" in line
    metrics = runner.main(words(tmp_path / "run", repeat_background=True, iters=1, **options))
    assert metrics["update"] == 1 and metrics["test"]["12"]["tokens"] > 11 * 48


HOSTILE = {
    "fact that comes later": ("1 Mary moved.\n2 Where is Mary? \thall\t3\n3 John moved.\n", "line 2: supporting fact"),
    "fact that is not there": (STORY + "1 Mary moved.\n2 Where is Mary? \thall\t7\n", "line 4: supporting fact '7'"),
    "line without a number": (STORY + "Mary moved.\n", "line 3: expected a line number"),
    "line left out": ("1 Mary moved.\n3 John moved.\n", "line 2: line number 3 follows 1"),
    "bytes that are not text": (STORY.encode() + b"1 Mary \xff moved.\n", "line 3: 'utf-8' codec can't decode"),
}


@pytest.mark.case(25, "a malformed bAbI file is named with its line")
@pytest.mark.parametrize("case", HOSTILE)
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_malformed_babi_file_is_named_with_its_line(refusal, tmp_path, case, split):
    content, message = HOSTILE[case]
    folder = babi_folder(tmp_path / "babi", **{"train": STORY * 30} | {split: content})
    line = refusal(tmp_path / "run", babi_path=folder)
    assert f"{folder}/qa1_single-supporting-fact_{split}.txt, {message}" in line


@pytest.mark.case(25, "a Parquet or Arrow file that was cut is named")
@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_a_dataset_file_that_was_cut_is_named(refusal, tmp_path, kind):
    import datasets

    rows = datasets.Dataset.from_dict({"text": [f"{SENTENCE} {number}" for number in range(2000)]})
    rows.save_to_disk(str(tmp_path / "saved"))
    rows.to_parquet(str(tmp_path / "saved" / "rows.parquet"))
    whole = next((tmp_path / "saved").glob(f"*.{kind}")).read_bytes()
    (tmp_path / "noise").mkdir()
    (tmp_path / "noise" / f"a.{kind}").write_bytes(whole)
    (tmp_path / "noise" / f"b.{kind}").write_bytes(whole[: len(whole) // 2])
    line = refusal(tmp_path / "run", noise_dataset=tmp_path / "noise")
    assert f"{tmp_path}/noise/b.{kind}: cut or damaged" in line


@pytest.mark.case(25, "a pickle where text is expected is named and not executed")
def test_a_pickle_where_text_is_expected_is_not_executed(refusal, tmp_path):
    payload = pickle.dumps(Payload(tmp_path / "marker"))
    pickle.loads(payload)  # it works
    (tmp_path / "marker").rmdir()
    line = refusal(tmp_path / "run", babi_path=babi_folder(tmp_path / "babi", payload))
    assert f"{tmp_path}/babi/qa1_single-supporting-fact_train.txt, line 1: " in line
    (tmp_path / "books.txt").write_bytes(payload)
    line = refusal(tmp_path / "run", noise_dataset=tmp_path / "books.txt")
    assert f"{tmp_path}/books.txt: not UTF-8 text" in line
    assert not (tmp_path / "marker").exists()


@pytest.mark.case(25, "a pickle in a checkpoint is named and not executed, even if the manifest agrees with it")
@pytest.mark.parametrize("name", ["optimizer.pt", "ranks.pt", "model.safetensors"])
@pytest.mark.parametrize("form", ["torch", "pickle"])
def test_a_pickle_in_a_checkpoint_is_not_executed(words, error_of, tmp_path, name, form):
    run = tmp_path / "run"
    runner.main(words(run, iters=1))
    path, payload = checkpoint.newest_checkpoint(run) / name, Payload(tmp_path / "marker")
    if form == "torch":
        torch.save({"optimizer": payload}, path)
    else:
        path.write_bytes(pickle.dumps(payload))
    manifest = path.with_name(checkpoint.MANIFEST)
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {name: checkpoint._fingerprint(path)}))
    assert checkpoint.problem_of(path.parent) is None
    line = error_of(run, iters=2)
    assert str(path) in line
    assert not (tmp_path / "marker").exists()
