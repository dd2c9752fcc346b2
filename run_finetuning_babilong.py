"""Fine-tune an ARMT, an RMT or a decoder without memory on BABILong and test it by length.

    python run_finetuning_babilong.py --model_cfg configs/models/llama-2x128.json --segment_size 64 \
        --max_n_segments 2 --vary_n_segments --lr 1e-3 --batch_size 32 --iters 1000 --model_path runs/try

Continues by itself after a kill; run again when done, it only prints the result.
"""

from lm_experiments_tools import cli, experiment
from lm_experiments_tools.data.babilong_task import BabilongArgs, BabilongTask
from lm_experiments_tools.evaluation.report import length_table
from lm_experiments_tools.loggers import say
from modeling_armt import options as models


def main(argv: list[str] | None = None) -> dict | None:
    return experiment.main(argv, __doc__, BabilongArgs, BabilongTask, models)


if __name__ == "__main__":
    cli.run(lambda: (metrics := main()) and say(length_table(metrics)))
