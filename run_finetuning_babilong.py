"""Fine-tune an ARMT, an RMT or a decoder without memory on BABILong and test it by length.

    python run_finetuning_babilong.py --model_cfg configs/models/llama-2x128.json --segment_size 64 \
        --max_n_segments 2 --vary_n_segments --lr 1e-3 --batch_size 32 --iters 1000 --model_path runs/try

Continues by itself after a kill; run again when done, it only prints the result.
"""

from pathlib import Path

from transformers import set_seed
from transformers.utils import logging as transformers_logging

from lm_experiments_tools import checkpoint, cli
from lm_experiments_tools.args import OptimizerArgs, TrainerArgs
from lm_experiments_tools.data.babilong_task import BabilongArgs, BabilongTask, exact_match, prompts
from lm_experiments_tools.distributed import make_engine
from lm_experiments_tools.dry_run import estimate
from lm_experiments_tools.errors import UserError
from lm_experiments_tools.evaluation.report import draw_lengths, length_table, write_json
from lm_experiments_tools.loggers import say
from lm_experiments_tools.optim import make_optimizer
from lm_experiments_tools.provenance import record_start
from lm_experiments_tools.run_folder import finished, locked, rank_log
from lm_experiments_tools.run_options import WITHOUT_EFFECT, RunArgs
from lm_experiments_tools.status import reported
from lm_experiments_tools.trainer import Trainer
from modeling_armt import options as model_options
from modeling_armt.adapters import save_adapter, trainable_table


def main(argv: list[str] | None = None) -> dict | None:
    transformers_logging.disable_progress_bar()  # a bar for each saved checkpoint
    kinds = (RunArgs, BabilongArgs, model_options.ModelArgs, OptimizerArgs, TrainerArgs)
    parsed = cli.parse(argv, *kinds, description=__doc__, without_effect=WITHOUT_EFFECT)
    run_args, task_args, model_args, optimizer_args, trainer_args = parsed
    if trainer_args.model_path is None:
        raise UserError("give --model_path, the folder of the run")
    run, config = Path(trainer_args.model_path), cli.resolved(*parsed)
    done = finished(run, config)
    if done is None:
        engine = make_engine(trainer_args.engine, trainer_args.collective_timeout)
        try:
            if run_args.dry_run:
                trainer, _ = build(config, engine, *parsed)
                say(f"{cli.to_yaml(config)}\n{trainable_table(trainer.model)}\n{estimate(trainer)}")
            else:
                with locked(run, engine), rank_log(run, engine.rank):
                    done = train_and_test(run, config, engine, *parsed)
        finally:
            engine.close()
    return done


def build(config, engine, run_args, task_args, model_args, optimizer_args, trainer_args):
    """The Trainer and its task."""
    if model_args.model_cpt:
        weights = checkpoint.weights_folder(model_args.model_cpt)
        if task_args.tokenizer is None and (weights / "tokenizer_config.json").exists():
            task_args.tokenizer = str(weights)  # the weights' own
    task = BabilongTask(task_args, trainer_args.seed, engine, needs_train=not run_args.validate_only)
    set_seed(trainer_args.seed)
    with cli.mendable(ValueError, OSError, ImportError):
        model = model_options.build_model(model_args, task_args.segment_size, task.tokenizer)
    if model_args.model_cpt:
        checkpoint.load_weights(model, weights)
    groups = model.parameter_groups(optimizer_args.memory_lr, optimizer_args.memory_weight_decay)
    optimizer = make_optimizer(groups, optimizer_args, trainer_args.lr)
    trainer = Trainer(
        trainer_args, model, optimizer, task.train, task.valid,
        collate_fn=task.collate,
        batch_metrics_fn=exact_match,
        forward_kwargs={"output_memory_state": False, "output_target_logits": True},
        generate_kwargs=task.generate_kwargs(),
        generate_inputs_fn=prompts,
        examples_fn=task.examples,
        tokenizer=task.tokenizer, config=config, engine=engine,
    )  # fmt: skip
    return trainer, task


def train_and_test(run, config, engine, run_args, task_args, model_args, *others) -> dict:
    trainer, task = build(config, engine, run_args, task_args, model_args, *others)
    model = trainer.model
    if engine.rank == 0:
        cli.write_config(run, config)
        record_start(run, engine.world_size)
        say(f"{type(model).__name__} on {engine.world_size} x {engine.device}\n{trainable_table(model)}")
    with trainer.stop_request, reported(run, engine.rank, lambda: trainer.progress.update):
        if not run_args.validate_only:
            trainer.train()
        if not (run_args.validate_only and model_args.model_cpt) and trainer.load_best() is None:
            raise UserError(f"validate_only: no checkpoint in {run}; give --model_cpt")
        metrics = score(trainer, task) | {"config": config}
        weights = checkpoint.whole_weights(model, keep=engine.rank == 0)
        if engine.rank == 0:
            if model.config.lora is not None:
                save_adapter(model, run / "adapter", weights)
            write_json(run / "metrics.json", metrics)
            draw_lengths(metrics, run / "accuracy.png")
    return metrics


def score(trainer: Trainer, task: BabilongTask) -> dict:
    """Validation and test metrics of the trained model."""
    progress = trainer.progress
    metrics = {
        "task": task.args.task_dataset, "trained_n_segments": task.args.max_n_segments,
        "update": progress.update, "tokens": progress.tokens, "stop_reason": progress.stop_reason,
        "valid": trainer.validate(task.valid), "test": {},
    }  # fmt: skip
    for name, dataset in task.tests.items():
        result = trainer.validate(dataset, f"test {name}")
        result |= {"samples": len(dataset), "tokens": len(dataset.sample(0, 0)["input_ids"])}
        metrics["test"][name] = result
    return metrics


if __name__ == "__main__":
    cli.run(lambda: (metrics := main()) and say(length_table(metrics)))
