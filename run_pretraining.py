"""Pre-train an ARMT, an RMT, a decoder without memory, or any causal language model on long documents; test it by
length.

    python -m lm_experiments_tools.data.language_modeling prepare --input ~/data/books --output corpora/books
    python run_pretraining.py --corpora corpora/books --model_cfg configs/models/llama-2x128.json --segment_size 64 \
        --max_n_segments 8 --lr 1e-3 --batch_size 16 --iters 1000 --valid_interval 100 --save_best \
        --model_path runs/books

Continues by itself after a kill; run again when done, it only prints the result.
"""

from lm_experiments_tools import cli, experiment
from lm_experiments_tools.data.language_modeling_task import LanguageModelingArgs, LanguageModelingTask
from lm_experiments_tools.evaluation.loss_report import loss_table
from lm_experiments_tools.loggers import say
from modeling_armt import options as models


def main(argv: list[str] | None = None) -> dict | None:
    return experiment.main(argv, __doc__, LanguageModelingArgs, LanguageModelingTask, models)


if __name__ == "__main__":
    cli.run(lambda: (metrics := main()) and say(loss_table(metrics)))
