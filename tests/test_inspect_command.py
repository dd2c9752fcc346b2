"""`python -m modeling_armt.inspect`: the picture, the files, and what it refuses."""

import dataclasses
import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from tiny_models import MEMORY, SEGMENT, backbone_config, make, shake

from lm_experiments_tools.data.tokenizer import train_tokenizer
from modeling_armt import ArmtForCausalLM
from modeling_armt.inspect import LayerReport, MemoryReport, inspect_memory
from modeling_armt.inspect.__main__ import main
from modeling_armt.inspect.figure import draw

ROOT = Path(__file__).parents[1]


def synthetic(layers, segments, first=1):
    lists = {field.name: [0.5] * segments for field in dataclasses.fields(LayerReport) if field.type == list[float]}
    lists["sources"] = [-0.1] * (segments + 1 - first)
    reports = [LayerReport(layer=number, source_before=0.3, **lists) for number in range(layers)]
    return MemoryReport(24, MEMORY, 0, [SEGMENT] * segments, 5, first, reports)


@pytest.mark.parametrize("layers, segments, first", [(1, 1, 1), (2, 3, 1), (6, 41, 20), (7, 2, 2), (48, 2000, 977)])
def test_any_number_of_layers_and_segments_has_a_picture(layers, segments, first, tmp_path):
    report = synthetic(layers, segments, first)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw(report, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    assert len(report.table().splitlines()) == 2 + layers and "before (30%)" in report.table()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with a model, one of another kind, and a text."""
    folder = tmp_path_factory.mktemp("saved")
    text = " ".join(f"word{n} is no{n * n}." for n in range(60))
    tokenizer = train_tokenizer([text], "inspected", 300, folder)
    config = backbone_config("llama")
    config.vocab_size = len(tokenizer)
    shake(ArmtForCausalLM.from_backbone(config, segment_size=16, num_mem_tokens=2, d_mem=4)).save_pretrained(
        folder / "model"
    )
    tokenizer.save_pretrained(folder / "model")
    make(kind="rmt").save_pretrained(folder / "rmt")
    make().save_pretrained(folder / "torn")
    (folder / "torn" / "model.safetensors").write_bytes(b"torn")
    (folder / "book.txt").write_text(text)
    (folder / "empty.txt").write_text("")
    return folder, tokenizer, text


def test_the_command_writes_json_and_picture_of_text_and_question(saved, tmp_path):
    folder, tokenizer, text = saved
    question = "what is word12?"
    command = [sys.executable, "-m", "modeling_armt.inspect", folder / "model", "--text", folder / "book.txt"]
    command += ["--question", question, "--output", tmp_path / "new" / "out"]
    on_the_cpu = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=ROOT, env=on_the_cpu)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "new" / "out"
    assert sorted(path.name for path in out.iterdir()) == ["memory.json", "memory.png"]
    asked = tokenizer(f" {question}")["input_ids"]
    model = ArmtForCausalLM.from_pretrained(folder / "model")
    expected = inspect_memory(model, tokenizer(text)["input_ids"] + asked, question_tokens=len(asked))
    assert json.loads((out / "memory.json").read_text()) == json.loads(expected.to_json())
    assert expected.table() in done.stdout and f"segments that the last {len(asked)} tokens read" in done.stdout


def test_the_last_token_of_a_question_can_be_asked_alone(saved, tmp_path, capsys):
    folder, *_ = saved
    given = [str(folder / "model"), "--text", str(folder / "book.txt"), "--output", str(tmp_path)]
    main([*given, "--question", "what is word12?", "--question_tokens", "1"])
    assert json.loads((tmp_path / "memory.json").read_text())["question_tokens"] == 1
    assert "segments that the last token read" in capsys.readouterr().out


def test_the_command_reads_as_many_segments_as_asked_and_replaces_what_it_wrote(saved, tmp_path, capsys):
    folder, *_ = saved
    given = [str(folder / "model"), "--text", str(folder / "book.txt"), "--output", str(tmp_path)]
    for number in (5, 3):
        main([*given, "--max_segments", str(number), "--question_tokens", "20", "--window", "1"])
        report = json.loads((tmp_path / "memory.json").read_text())
        assert report["segment_tokens"] == [16] * number and report["question_tokens"] == 20
        assert report["first_source"] == number - 2
    assert "3 segments, 48 tokens" in capsys.readouterr().out


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"model": "nowhere"}, "no config.json in .*nowhere: give the folder of a saved model"),
        ({"model": "rmt"}, "RmtForCausalLM has no associative memory"),
        ({"model": "torn"}, "header"),
        ({"--text": "nowhere.txt"}, "no text file .*nowhere.txt"),
        ({"--text": "empty.txt"}, "no token to read"),
        ({"--text": "model/model.safetensors"}, "model.safetensors is not UTF-8 text"),
        ({"--output": "book.txt"}, "book.txt is a file"),
        ({"--output": "book.txt/out"}, "book.txt is a file"),
        ({"--max_segments": 0}, "max_segments is 0"),
        ({"--window": 0}, "window is 0"),
        ({"--question_tokens": 100000}, "question_tokens is 100000; give 1 to"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(saved, changed, message, capsys):
    folder, *_ = saved
    options = {"model": "model", "--text": "book.txt", "--output": "out"} | changed
    given = [str(folder / options.pop("model"))]
    for name, value in options.items():
        given += [name, str(folder / value) if isinstance(value, str) else str(value)]
    before = sorted(folder.rglob("*"))
    with pytest.raises(SystemExit) as stopped:
        main(given)
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.startswith("error: ") and len(error.splitlines()) == 1
    assert re.search(message, error) and sorted(folder.rglob("*")) == before


def test_a_picture_that_fails_leaves_nothing(saved, tmp_path, monkeypatch, capsys):
    folder, *_ = saved

    def fail(report, path):
        path.write_text("half")
        raise OSError("no space left")

    monkeypatch.setattr("modeling_armt.inspect.__main__.draw", fail)
    with pytest.raises(SystemExit):
        main([str(folder / "model"), "--text", str(folder / "book.txt"), "--output", str(tmp_path)])
    assert "no space left" in capsys.readouterr().err and not list(tmp_path.iterdir())
