"""What the machine can do, measured beside every benchmark; what it is; the tests without which nothing is reported.

python benchmarks/machine.py [--device cuda]
"""

import ctypes
import gc
import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import transformers

from lm_experiments_tools import cli
from lm_experiments_tools.args import option
from lm_experiments_tools.errors import UserError

ROOT = Path(__file__).parents[1]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SIDE = {"cpu": 2048, "cuda": 8192}  # of the square matrices: 0.1 s in float32 on two cores, 1.4 ms on an H100
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)
COPIED = {"cpu": 1 << 27, "cuda": 1 << 31}  # bytes, more than any cache


@dataclass
class MachineArgs:
    """Where to measure."""

    device: str = option("cpu", "cpu or cuda")
    dtype: str | None = option(None, "compute type: float32 or bfloat16; default: float32 on a CPU, bfloat16 on a GPU")
    clock: Literal["wall", "cpu"] = option(
        "wall", "cpu: seconds of the CPU, which other work on the machine disturbs less; with OMP_NUM_THREADS=1"
    )
    output: str | None = option(None, "JSON file for the figures")

    def __post_init__(self):
        if self.device not in SIDE:
            raise UserError(f"device is {self.device!r}; choose cpu or cuda")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise UserError("no GPU here: leave --device cuda out")
        if self.clock == "cpu" and self.device == "cuda":
            raise UserError("CPU seconds say nothing of a GPU: leave --clock cpu out")
        self.dtype = self.dtype or ("float32" if self.device == "cpu" else "bfloat16")
        if self.dtype not in DTYPES:
            raise UserError(f"dtype is {self.dtype!r}; choose {' or '.join(DTYPES)}")

    @property
    def on_cpu(self) -> bool:
        return self.device == "cpu"

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]

    def now(self) -> float:
        """Seconds of the clock."""
        return time.process_time() if self.clock == "cpu" else time.perf_counter()

    def timed(self, function: Callable[[], Any]) -> float:
        """Seconds until it is done."""
        start = self.now()
        function()
        if self.device == "cuda":
            torch.cuda.synchronize()
        return self.now() - start


class Ceiling:
    """A large matrix product and a large copy, sampled now and again: other work on the machine meets all alike."""

    def __init__(self, args: MachineArgs):
        self.args, self.device, self.dtype = args, args.device, args.torch_dtype
        side = SIDE[self.device]
        self.factor = torch.randn(side, side, device=self.device, dtype=self.dtype)
        self.product = torch.zeros_like(self.factor)  # both stay, so that samples leave resident memory as it is
        self.product_seconds: list[float] = []
        self.copy_seconds: list[float] = []
        self.sample()
        self.product_seconds, self.copy_seconds = [], []  # the first one warms up
        self.sample()

    def sample(self, repeats: int = 3) -> None:
        self.product_seconds += [self._timed(self._multiply) for _ in range(repeats)]
        source = torch.ones(COPIED[self.device], dtype=torch.int8, device=self.device)
        target = source.clone()  # its pages are there
        self.copy_seconds += [self._timed(lambda: target.copy_(source)) for _ in range(repeats)]

    def _multiply(self) -> None:
        torch.mm(self.factor, self.factor, out=self.product)

    def _timed(self, function: Callable[[], Any]) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return self.args.timed(function)

    @property
    def flops(self) -> float:
        """FLOP/s of the matrix product, median."""
        return 2 * SIDE[self.device] ** 3 / statistics.median(self.product_seconds)

    def report(self) -> dict[str, float]:
        """Rates in TFLOP/s and GB/s (bytes read and written), median and best."""
        work, moved = 2 * SIDE[self.device] ** 3 / 1e12, 2 * COPIED[self.device] / 1e9
        return {
            "matrix_product_tflops": work / statistics.median(self.product_seconds),
            "best_matrix_product_tflops": work / min(self.product_seconds),
            "copy_gb_per_second": moved / statistics.median(self.copy_seconds),
            "best_copy_gb_per_second": moved / min(self.copy_seconds),
        }


def environment(device: str) -> dict[str, Any]:
    """Names, versions, threads and load."""
    names = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    found = {
        "cpu": names[0] if names else platform.processor(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],  # of the last minute, before the benchmark
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }
    return found | ({"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda} if device == "cuda" else {})


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if os.path.exists(path) else []


def require_tests(*words: str) -> None:
    """End the program, with exit code 1, unless these tests pass; what passed is not run again on the same sources.

    Args:
        words: files relative to the root of the repository, and other words for pytest.
    """
    if "PYTEST_CURRENT_TEST" in os.environ:
        return  # the benchmark is itself being tested
    mark = Path(tempfile.gettempdir()) / f"benchmarks-{os.getuid()}-passed-{_digest(words)}"
    if mark.exists():
        return
    print("tests first:", *words, file=sys.stderr)
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
        reason = failed[0] if failed else (done.stdout + done.stderr).strip().splitlines()[-1]
        print(f"nothing is reported while tests fail: {reason}", file=sys.stderr)
        sys.exit(1)
    mark.touch()


def _digest(words: tuple[str, ...]) -> str:
    """Of the tests and of all that they may depend on."""
    digest = hashlib.sha256(repr((words, sys.version, torch.__version__, transformers.__version__)).encode())
    folders = ("modeling_armt", "lm_experiments_tools", "tests")
    for path in sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:32]


@contextmanager
def freed_memory_returned() -> Iterator[None]:
    """Inside, freed blocks of a CPU's memory go back to the system, so that what is resident is held; it costs time.

    Blocks that were freed before are still used up first: measure what starts in here.
    """
    libc = ctypes.CDLL("libc.so.6")
    libc.mallopt(M_MMAP_THRESHOLD, 1 << 18)
    yield
    libc.mallopt(M_MMAP_THRESHOLD, 1 << 25)  # what they grow to by themselves
    libc.mallopt(M_TRIM_THRESHOLD, 1 << 26)


def there_and_back(names: list[str]) -> list[str]:
    """A B C C B A: each is as early as it is late."""
    return [*names, *reversed(names)]


def free_memory(device: str) -> int:
    """Bytes that can still be taken."""
    if device == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info()[0]
    available = [line.split()[1] for line in _lines("/proc/meminfo") if line.startswith("MemAvailable")]
    return int(available[0]) * 1024


def finish(args: MachineArgs, ceiling: Ceiling, **found: Any) -> None:
    """Print what the machine did meanwhile, and write the JSON."""
    rates, about = ceiling.report(), environment(args.device)
    product = f"{rates['matrix_product_tflops']:.3f} TFLOP/s (best {rates['best_matrix_product_tflops']:.3f})"
    print(f"\nceiling, measured in between ({args.dtype}, {args.clock} clock): matrix product {product}, "
          f"copy {rates['copy_gb_per_second']:.1f} GB/s")  # fmt: skip
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    if args.output:
        report = {"environment": about, "options": asdict(args), "ceiling": rates} | found
        Path(args.output).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def main(argv: list[str] | None = None) -> None:
    (args,) = cli.parse(argv, MachineArgs, description=__doc__)
    finish(args, Ceiling(args))


if __name__ == "__main__":
    cli.run(main)
