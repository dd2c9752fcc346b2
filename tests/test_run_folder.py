"""What a runner does beside training: dry runs, logs of other ranks."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from test_runner import options, shared  # noqa: F401  the fixture

import run_finetuning_babilong as runner
from lm_experiments_tools import cli
from lm_experiments_tools.args import OptimizerArgs, TrainerArgs
from lm_experiments_tools.data.babilong_task import BabilongArgs
from lm_experiments_tools.run_options import RunArgs
from modeling_armt.options import ModelArgs

ROOT = Path(__file__).parents[1]


def test_a_dry_run_tells_options_parameters_memory_and_time_and_writes_nothing(shared, tmp_path, capsys):  # noqa: F811
    assert runner.main([*options(shared, tmp_path / "run", iters=500, lora_r=2), "--dry_run"]) is None
    output = capsys.readouterr().out
    assert not (tmp_path / "run").exists()
    config, _, table = output.partition("\n\n")
    assert yaml.safe_load(config)["iters"] == 500
    assert "trained" in table and "LoRA" in table
    rows = {line[:18].strip(): line[18:].split() for line in table.splitlines()}
    for name in ("weights", "gradients", "optimizer state", "activations", "a rank"):
        assert float(rows[name][0]) >= 0 and rows[name][1] == "GB"
    assert float(rows["weights"][0]) <= float(rows["a rank"][0])
    assert float(rows["one update"][0]) > 0 and "tokens/s," in rows["one update"] and rows["500 updates"][1] == "h"


FAILING = """
import sys
from pathlib import Path
from lm_experiments_tools import cli
from lm_experiments_tools.errors import UserError
from lm_experiments_tools.run_folder import rank_log
from lm_experiments_tools.status import reported

run, rank = Path(sys.argv[1]), int(sys.argv[2])

def main():
    with rank_log(run, rank), reported(run, rank, lambda: 7):
        print("hello of", rank)
        raise {"user": UserError, "other": RuntimeError}[sys.argv[3]]("it went wrong")

cli.run(main)
"""


@pytest.mark.parametrize("kind, code", [("user", 2), ("other", 1)])
def test_an_error_of_another_rank_is_one_line_on_the_console_and_whole_in_its_log(tmp_path, kind, code):
    def run(rank):
        command = [sys.executable, "-c", FAILING, str(tmp_path), str(rank), kind]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    first, second = run(3), run(1)
    assert first.returncode == second.returncode == code
    assert first.stdout == second.stdout == ""
    (line,) = first.stderr.splitlines()
    assert line.startswith("rank 3 failed: ") and "it went wrong" in line and str(tmp_path / "logs/rank-3.log") in line
    assert second.stderr == "", "what follows from the first failure is not told again"
    for rank in (1, 3):
        log = (tmp_path / "logs" / f"rank-{rank}.log").read_text()
        assert f"hello of {rank}" in log and "Traceback" in log and "it went wrong" in log


def test_the_yaml_of_a_dry_run_is_a_config(shared, tmp_path):  # noqa: F811
    words = options(shared, tmp_path / "run")
    kinds = (RunArgs, BabilongArgs, ModelArgs, OptimizerArgs, TrainerArgs)
    parsed = cli.parse(words, *kinds)
    file = tmp_path / "config.yaml"
    file.write_text(cli.to_yaml(cli.resolved(*parsed)))
    again = cli.parse([f"--config={file}"], *kinds)
    assert cli.resolved(*again) == cli.resolved(*parsed)
