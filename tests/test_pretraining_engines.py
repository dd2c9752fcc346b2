"""Pre-training on several ranks: micro-batches differ in their numbers of rows, and the losses are those of one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_pretraining import options
from tiny_corpora import make_shared

import run_pretraining as runner

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return make_shared(tmp_path_factory.mktemp("shared"))


def train_losses(run):
    rows = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    return [row["loss"] for row in rows if row["split"] == "train"]


def test_ranks_of_every_engine_train_as_one_process(shared, tmp_path):
    mixed = dict(corpora=[f"{shared / 'corpora' / 'train'}=3", f"{shared / 'corpora' / 'short'}=1"], lr=1e-2)
    whole = runner.main(options(shared, tmp_path / "one", **mixed))
    for engine in ("ddp", "fsdp"):
        run = tmp_path / engine
        words = options(shared, run, **mixed, batch_size=2, engine=engine)
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        done = subprocess.run(
            [*launcher, "run_pretraining.py", *words], cwd=ROOT, capture_output=True, text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        assert train_losses(run) == pytest.approx(train_losses(tmp_path / "one"), rel=1e-5)
        metrics = json.loads((run / "metrics.json").read_text())
        assert metrics["valid"]["loss"] == pytest.approx(whole["valid"]["loss"], rel=1e-5)
        assert metrics["test"]["4"]["loss"] == pytest.approx(whole["test"]["4"]["loss"], rel=1e-5)
