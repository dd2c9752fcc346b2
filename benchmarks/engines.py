"""What training costs beside the model: each engine's rate and checkpoints, the Trainer over a bare loop, saving.

    python benchmarks/engines.py                                   # four minutes on two CPU cores
    python benchmarks/engines.py --device cuda --layers 12 --width 768 --segment_size 512 --batch_size 4 --samples 32

A small GPT-2-like ARMT with random weights and tokens; an update has the same samples for every engine and for the bare
loop. `single` is one process, every other engine `--ranks` processes of this machine, on CPUs of one thread each. A
block of updates ends with a line of the log (console, JSONL, TensorBoard); nothing is validated or saved meanwhile.

The bare loop gets batches that lie ready, and takes turns with the Trainer in one process (A B B A ...), so that other
work on the machine meets both alike; engines run one behind the other, and are compared less exactly. A checkpoint
stops training from the end of an update to the next forward pass; in all it costs what the updates from there to the
next one take longer than as many like those of their second half.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from transformers import GPT2Config

from lm_experiments_tools import checkpoint, cli
from lm_experiments_tools.args import OptimizerArgs, TrainerArgs
from lm_experiments_tools.callbacks import Callback
from lm_experiments_tools.distributed import Engine, make_engine
from lm_experiments_tools.errors import UserError
from lm_experiments_tools.optim import make_optimizer
from lm_experiments_tools.trainer import Trainer
from modeling_armt import ArmtForCausalLM

ENGINES = ("single", "ddp", "fsdp", "horovod")
GOAL = 1.02  # of the Trainer's time over the bare loop's
VOCABULARY, LR, CLIP = 1000, 1e-4, 1.0
FORWARD = {"output_memory_state": False}  # as in run_finetuning_babilong.py


def random_samples(tokens: int) -> list[dict]:
    """All tokens are labelled."""
    rows = torch.randint(VOCABULARY, (1000, tokens), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": row, "labels": row} for row in rows]


def make_model(layers: int, width: int, segment_size: int) -> ArmtForCausalLM:
    """Without dropout, so that equal updates give equal weights."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=2 * segment_size, n_layer=layers, n_embd=width, n_head=max(1, width // 64),
        bos_token_id=None, eos_token_id=None, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    return ArmtForCausalLM.from_backbone(config, segment_size=segment_size, num_mem_tokens=segment_size // 8, d_mem=16)


def train(engine: Engine, model: ArmtForCausalLM, folder: Path, tokens: int, callback: Callback, **options) -> None:
    """A run as users start it, whose console is a file."""
    args = TrainerArgs(model_path=str(folder), clip_grad_norm=CLIP, **options)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "console.txt", "a") as console, redirect_stdout(console), redirect_stderr(console):
        optimizer, samples = make_optimizer(model.parameters(), OptimizerArgs(), LR), random_samples(tokens)
        Trainer(args, model, optimizer, samples, callbacks=[callback], engine=engine, forward_kwargs=FORWARD).train()


def now(device: torch.device) -> np.ndarray:
    """Seconds of the wall clock, and CPU seconds of this process."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return np.array([time.perf_counter(), time.process_time()])


class Seconds(Callback):
    """Of every update, from the end of the one before."""

    def on_train_begin(self, trainer: Trainer) -> None:
        self.seconds, self.start = [], now(trainer.engine.device)

    def on_update_end(self, trainer: Trainer, values: dict | None) -> None:
        self.seconds.append(now(trainer.engine.device) - self.start)
        self.start = now(trainer.engine.device)


def in_blocks(seconds: list[np.ndarray], updates: int) -> np.ndarray:
    """Seconds of an update, as means over blocks of so many; the first block, which warms up, is left out."""
    return np.array(seconds).reshape(-1, updates, 2).mean(1)[1:]


class WithBareLoop(Seconds):
    """Beside the Trainer's updates, as many in plain PyTorch, of a copy of its model on the same batches."""

    def on_train_begin(self, trainer: Trainer) -> None:
        self.model, self.bare_seconds = deepcopy(trainer.model).train(), []
        self.optimizer = make_optimizer(self.model.parameters(), OptimizerArgs(), LR)
        self.batches = trainer.train_batches()
        super().on_train_begin(trainer)

    def on_update_end(self, trainer: Trainer, values: dict | None) -> None:
        """One of the Trainer, two bare, two of the Trainer, two bare, ..."""
        super().on_update_end(trainer, values)
        device = trainer.engine.device
        for _ in range(2 * (trainer.progress.update % 2)):
            batches = [next(self.batches) for _ in range(trainer.args.gradient_accumulation_steps)]
            start = now(device)
            self._update(batches, device)
            self.bare_seconds.append(now(device) - start)
        self.start = now(device)

    def _update(self, batches: list[dict], device: torch.device) -> None:
        for batch in batches:
            batch = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
            (self.model(**batch, **FORWARD).loss / len(batches)).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


class Stops(Seconds):
    """Beside updates: seconds from the end of each to the next forward pass."""

    def on_train_begin(self, trainer: Trainer) -> None:
        super().on_train_begin(trainer)
        device, self.stops = trainer.engine.device, []
        trainer.model.register_forward_pre_hook(lambda *_: self.stops.append((now(device) - self.start)[0]))


def small_run(args: argparse.Namespace, engine: Engine, folder: Path, seconds: Seconds, blocks: int) -> ArmtForCausalLM:
    """Updates of the small model in that many blocks, behind one that warms up; returns the model."""
    model, tokens = make_model(args.layers, args.width, args.segment_size), args.segments * args.segment_size
    options = {"batch_size": args.batch_size, "log_interval": args.block, "iters": args.block * (blocks + 1)}
    options["gradient_accumulation_steps"] = args.samples // (args.batch_size * engine.world_size)
    train(engine, model, folder, tokens, seconds, **options)
    return model


def rate(args: argparse.Namespace, name: str, folder: Path) -> dict:
    """Updates a second of one engine, and the bytes of its checkpoint; every rank must call."""
    engine, seconds = make_engine(name), Seconds()
    small_run(args, engine, folder, seconds, args.blocks)
    rates = (1 / in_blocks(seconds.seconds, args.block)[:, 0]).tolist()
    sizes = bytes_by_file(checkpoint.step_folders(folder)[-1])
    result = {"engine": name, "ranks": engine.world_size, "updates_per_second": rates, "checkpoint_bytes": sizes}
    if engine.rank == 0:
        (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
    engine.close()
    return result


def bytes_by_file(folder: Path) -> dict[str, int]:
    """Of a checkpoint. What lies in a folder inside it is counted together: all ranks write there, else rank 0."""
    sizes = Counter()
    for path in filter(Path.is_file, folder.rglob("*")):
        name, *inside = path.relative_to(folder).parts
        sizes[f"{name}/, by all ranks" if inside else name] += path.stat().st_size
    return dict(sizes)


def launch(args: argparse.Namespace, name: str, folder: Path) -> dict:
    """`rate` on several ranks, or why it was left out."""
    if name == "horovod" and importlib.util.find_spec("horovod") is None:
        return {"engine": name, "skipped": "Horovod is not installed: scripts/install_horovod.sh"}
    if args.device == "cuda" and torch.cuda.device_count() < args.ranks:
        return {"engine": name, "skipped": f"{args.ranks} ranks need as many GPUs"}
    horovodrun = [str(Path(sys.executable).with_name("horovodrun")), "-np", str(args.ranks), "-H"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={args.ranks}"]
    launcher = [*horovodrun, f"localhost:{args.ranks}", sys.executable] if name == "horovod" else torchrun
    command = [*launcher, __file__, *sys.argv[1:], "--rank_of", name, "--folder", str(folder)]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"engine {name} failed:\n{done.stdout}\n{done.stderr}")
    return json.loads((folder / "result.json").read_text(encoding="utf-8"))


def overhead(args: argparse.Namespace, folder: Path) -> dict:
    """Seconds of an update, wall clock and CPU, in the Trainer and in a bare loop: means of blocks."""
    seconds = WithBareLoop()
    model = small_run(args, make_engine("single"), folder, seconds, args.pairs)
    mine, bare = (in_blocks(found, args.block).tolist() for found in (seconds.seconds, seconds.bare_seconds))
    difference = max((a - b).abs().max().item() for a, b in zip(model.parameters(), seconds.model.parameters()))
    return {"trainer_seconds": mine, "bare_seconds": bare, "weights_differ_by": difference}


def saving(args: argparse.Namespace, folder: Path, in_background: bool) -> dict:
    """Seconds that each checkpoint stops training, and that it costs in all."""
    cycle, stops, model = args.save_interval, Stops(), make_model(args.save_layers, args.save_width, args.segment_size)
    options = {"save_interval": cycle, "async_save": in_background, "keep_checkpoints": 1}
    train(make_engine("single"), model, folder, args.segment_size, stops, iters=cycle * (args.saves + 1), **options)
    updates = np.array(stops.seconds)[cycle:, 0].reshape(-1, cycle)
    return {
        "async_save": in_background,
        "weights_bytes": sum(parameter.nbytes for parameter in model.parameters()),
        "checkpoint_bytes": sum(bytes_by_file(checkpoint.step_folders(folder)[-1]).values()),
        "seconds_of_stop": stops.stops[cycle::cycle],
        "seconds_in_all": (updates.sum(1) - cycle * np.median(updates[:, cycle // 2 :], axis=1)).tolist(),
    }


def spread(values: list[float], form: str) -> str:
    """Median, and quartiles in brackets."""
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return f"{middle:{form}} ({low:{form}} to {high:{form}})"


def show_engines(rows: list[dict]) -> None:
    print(f"{'engine':<24}{'ranks':>6}{'updates/s (quartiles)':>26}{'checkpoint, bytes':>20}")
    for row in rows:
        if "skipped" in row:
            print(f"{row['engine']:<24}skipped: {row['skipped']}")
        else:
            rates, size = spread(row["updates_per_second"], ".2f"), sum(row["checkpoint_bytes"].values())
            print(f"{row['engine']:<24}{row['ranks']:>6}{rates:>26}{size:>20,}")
    sizes = {row["engine"]: row["checkpoint_bytes"] for row in rows if "skipped" not in row}
    print(f"\n{'bytes of':<24}" + "".join(f"{engine:>14}" for engine in sizes))
    for file in sorted({file for by_file in sizes.values() for file in by_file}):
        print(f"{file:<24}" + "".join(f"{by_file.get(file, 0):>14,}" for by_file in sizes.values()))


def show_overhead(result: dict, updates: int) -> None:
    mine, bare = (np.array(result[name]) for name in ("trainer_seconds", "bare_seconds"))
    added = spread(1000 * (mine - bare)[:, 0], ".1f")
    print(f"\nan update of the bare loop takes {1000 * np.median(bare[:, 0]):.1f} ms; the Trainer adds {added} ms")
    for kind, ratios in zip(("wall clock", "CPU seconds"), (mine / bare).T):
        print(f"Trainer / bare loop, {kind:<12}{spread(ratios, '.3f')}")
    apart = result["weights_differ_by"]
    print(f"{len(mine)} pairs of {updates} updates, goal {GOAL}; behind them weights differ by at most {apart:.1g}")


def show_saving(rows: list[dict]) -> None:
    size, whole = rows[0]["weights_bytes"] / 1e6, rows[0]["checkpoint_bytes"] / 1e6
    print(f"\n{size:.3g} MB of weights, checkpoints of {whole:.3g} MB")
    print(f"{'seconds a checkpoint':<24}{'training stands still':>26}{'in all':>26}")
    for row in rows:
        stop, in_all = spread(row["seconds_of_stop"], ".3f"), spread(row["seconds_in_all"], ".3f")
        print(f"{'--async_save' if row['async_save'] else 'plain':<24}{stop:>26}{in_all:>26}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--engines", nargs="+", default=ENGINES, choices=ENGINES, help="default: all")
    for name, default, text in (
        ("ranks", 2, "processes of every engine but single"),
        ("layers", 2, "layers of the backbone"),
        ("width", 128, "width of the backbone"),
        ("segment_size", 64, "text tokens of a segment"),
        ("segments", 3, "segments of a sample"),
        ("batch_size", 1, "samples of a micro-batch on a rank"),
        ("samples", 4, "samples of an update, over all ranks"),
        ("block", 10, "updates of a block, which ends with a line of the log"),
        ("blocks", 10, "blocks of each engine"),
        ("pairs", 40, "blocks of the Trainer, and of the bare loop"),
        ("save_layers", 7, "layers of the model that is saved"),
        ("save_width", 512, "width of the model that is saved"),
        ("save_interval", 20, "updates between checkpoints, each of one sample of one segment"),
        ("saves", 5, "checkpoints of each kind"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{text}; default: {default}")
    parser.add_argument("--folder", help="where runs are kept meanwhile; default: the system's temporary folder")
    parser.add_argument("--output", type=Path, help="JSON file")
    parser.add_argument("--rank_of", choices=ENGINES, help=argparse.SUPPRESS)  # what the launchers start
    args = parser.parse_args()
    if args.samples % (args.batch_size * args.ranks) or args.block % 2:
        raise UserError("samples must be a multiple of batch_size x ranks, and block an even number")
    if args.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # of the launched ranks as well; no GPU has been looked for yet
    elif not torch.cuda.is_available():
        raise UserError("no GPU here: leave --device cuda out")
    return args


def main() -> None:
    args = parse()
    torch.set_num_threads(1)
    if args.rank_of:
        rate(args, args.rank_of, Path(args.folder))
        return
    print(f"updates of {args.samples} samples of {args.segments} segments; {args.device}, torch {torch.__version__}\n")
    report = {"torch": torch.__version__, "options": vars(args) | {"output": str(args.output)}}
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        report["engines"] = [(rate if name == "single" else launch)(args, name, folder / name) for name in args.engines]
        show_engines(report["engines"])
        report["overhead"] = overhead(args, folder / "overhead")
        show_overhead(report["overhead"], args.block)
        report["saving"] = [saving(args, folder / f"async-{choice}", choice) for choice in (False, True)]
        show_saving(report["saving"])
    if args.output:
        args.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    cli.run(main)
