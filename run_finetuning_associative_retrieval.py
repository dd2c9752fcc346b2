"""Train a small ARMT, an RMT, a decoder without memory, or any causal language model on associative retrieval.

    python run_finetuning_associative_retrieval.py --model_cfg configs/models/llama-4x128.json --num_mem_tokens 1 \
        --d_mem 32 --num_pairs 5 --vary_n_pairs --lr 1e-3 --batch_size 128 --iters 1000 --model_path runs/try

Continues by itself after a kill; run again when done, it only prints the result.
"""

from lm_experiments_tools import cli, experiment
from lm_experiments_tools.data.associative_retrieval import AssociativeRetrievalArgs, AssociativeRetrievalTask
from lm_experiments_tools.evaluation.report import length_table
from lm_experiments_tools.loggers import say
from modeling_armt import options as models


def main(argv: list[str] | None = None) -> dict | None:
    return experiment.main(argv, __doc__, AssociativeRetrievalArgs, AssociativeRetrievalTask, models)


if __name__ == "__main__":
    cli.run(lambda: (metrics := main()) and say(length_table(metrics)))
