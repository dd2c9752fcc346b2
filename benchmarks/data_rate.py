"""How many tokens a second one worker makes of BABILong samples.

    python benchmarks/data_rate.py                      # simulated qa1, embedded sentences, 16k-token samples
    python benchmarks/data_rate.py --sample_size 16000 --babi_path en-10k --noise_dataset books/

Measures samples alone, samples collated in the training process, and what the training process receives from one
worker, beside the machine's own ceiling: a copy of the same number of bytes. Writes JSON with --output.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np
from torch.utils.data import DataLoader

from lm_experiments_tools import cli
from lm_experiments_tools.data.babilong_task import BabilongArgs, BabilongTask
from lm_experiments_tools.distributed import make_engine
from lm_experiments_tools.sampling import KeyedDataset, TrainSampler

TARGET = 1e6  # tokens a second of one worker


def rates(task: BabilongTask, batches: int, batch_size: int, repeats: int) -> dict[str, float]:
    """Median tokens a second over `repeats` passes, by measurement."""
    dataset = KeyedDataset(task.train)
    keys = [keys for _, keys in zip(range(batches), TrainSampler(len(task.train), batch_size, 0, 0, 1, 0))]
    loader = DataLoader(dataset, batch_sampler=keys, collate_fn=task.collate, num_workers=1, persistent_workers=True)
    measured = {
        "samples": lambda: sum(len(dataset[key]["input_ids"]) for batch in keys for key in batch),
        "samples, collated": lambda: sum(_tokens(task.collate([dataset[key] for key in batch])) for batch in keys),
        "received from 1 worker": lambda: sum(_tokens(batch) for batch in loader),
    }
    result = {name: _median_rate(function, repeats) for name, function in measured.items()}
    size = int(np.mean([len(dataset[key]["input_ids"]) for key in keys[0]]))
    source = np.zeros((batches * batch_size, size), dtype=np.int64)
    target = np.empty_like(source)
    # ids, labels and mask of a token are 24 bytes in a batch
    result["ceiling: copy of ids, labels, mask"] = _median_rate(
        lambda: [np.copyto(target, source) for _ in range(3)] and source.size, repeats
    )
    return result


def _tokens(batch: dict) -> int:
    return batch["input_ids"].numel()


def _median_rate(function, repeats: int) -> float:
    function()
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        tokens = function()
        found.append(tokens / (time.perf_counter() - start))
    return statistics.median(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample_size", type=int, default=16_000, help="tokens of a context")
    parser.add_argument("--babi_path", help="folder of bAbI files; default: simulated")
    parser.add_argument("--noise_dataset", nargs="+", help="background text; default: embedded sentences")
    parser.add_argument("--tokenizer", help="tokenizer; default: a trained one")
    parser.add_argument("--batches", type=int, default=20, help="batches of one pass")
    parser.add_argument("--batch_size", type=int, default=8, help="samples of a batch")
    parser.add_argument("--repeats", type=int, default=7, help="passes; the median counts")
    parser.add_argument("--output", type=Path, help="JSON file")
    args = parser.parse_args()
    names = ("sample_size", "babi_path", "noise_dataset", "tokenizer")
    task = BabilongTask(BabilongArgs(**{name: getattr(args, name) for name in names}), 0, make_engine())
    result = rates(task, args.batches, args.batch_size, args.repeats)
    ceiling = result["ceiling: copy of ids, labels, mask"]
    print(f"{'at ' + str(args.sample_size) + ' tokens a sample':36}  M tokens/s  of the ceiling")
    for name, rate in result.items():
        print(f"{name:36}  {rate / 1e6:10.1f}  {rate / ceiling:13.0%}")
    print(f"target of {TARGET / 1e6:g} M tokens/s a worker: {result['received from 1 worker'] / TARGET:.1f} times that")
    if args.output:
        args.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    cli.run(main)
