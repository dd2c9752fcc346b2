"""The log of a run: `log.jsonl` is the record, TensorBoard the view of it."""

import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

Row = dict[str, Any]


class RunLog:
    """Scalars of a run folder, in JSONL and in TensorBoard under `NAME/iterations/SPLIT` and `NAME/samples/SPLIT`."""

    def __init__(self, folder: Path, update: int):
        """Open the log of a run that goes on after `update`: rows behind it, left by a killed process, are cut."""
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "log.jsonl"
        self._cut(update)
        self.file = open(self.path, "ab", buffering=0)
        self.unwritten = b""  # rows that a full disk refused, to be tried again
        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=update + 1)

    def _cut(self, update: int) -> None:
        if not self.path.exists():
            return
        kept, cut = [], 0
        for line in self.path.read_text(encoding="utf-8").splitlines():
            row = _parse(line)
            if row is not None and row["update"] <= update:
                kept.append(line + "\n")
            else:
                cut += 1
        if cut:
            say(f"{self.path}: {cut} rows behind update {update} are cut")
            temporary = self.path.with_suffix(".tmp")
            temporary.write_text("".join(kept), encoding="utf-8")
            temporary.replace(self.path)

    def write(self, split: str, update: int, samples: int, values: dict[str, float]) -> None:
        """One row: `values` after `update` updates and `samples` samples. Non-finite values are written as text."""
        row = {"split": split, "update": update, "samples": samples}
        row |= finite(values)
        self._append(json.dumps(row, allow_nan=False) + "\n")
        points = {f"{name}/iterations/{split}": (value, update) for name, value in values.items()}
        self._show(points | {f"{name}/samples/{split}": (value, samples) for name, value in values.items()})

    def write_rates(self, update: int, rates: list[float]) -> None:
        """Learning rates of the parameter groups, under `lr/iterations/param_group_N`."""
        self._show({f"lr/iterations/param_group_{group}": (rate, update) for group, rate in enumerate(rates)})

    def write_examples(self, update: int, samples: int, texts: list[str]) -> None:
        """What was predicted in a validation, under `examples/valid`."""
        self._append(json.dumps({"split": "examples", "update": update, "samples": samples, "texts": texts}) + "\n")
        text = "\n\n".join(f"    {line}" for text in texts for line in text.splitlines())
        self._to_tensorboard(lambda writer: writer.add_text("examples/valid", text, update))

    def write_hyper_parameters(self, config: Row, metrics: dict[str, float]) -> None:
        """A row of TensorBoard's table: options, and what they led to."""
        from torch.utils.tensorboard.summary import hparams

        shown = {name: v if isinstance(v, (bool, int, float, str)) else str(v) for name, v in config.items()}
        final = {f"best/{name}": value for name, value in metrics.items()}

        def write(writer) -> None:
            for summary in hparams(shown, final):
                writer.file_writer.add_summary(summary)
            for name, value in final.items():
                writer.add_scalar(name, value)

        self._to_tensorboard(write)

    def _append(self, text: str = "") -> None:
        data = self.unwritten + text.encode()
        try:
            self.unwritten = data[self.file.write(data) :] if data else b""
        except OSError as error:
            if not self.unwritten:
                say(f"warning: {self.path} cannot be written ({error}); rows are kept and tried again")
            self.unwritten = data

    def _show(self, points: dict[str, tuple[float, int]]) -> None:
        def write(writer) -> None:
            for tag, (value, step) in points.items():
                writer.add_scalar(tag, value, step)

        self._to_tensorboard(write)

    def _to_tensorboard(self, write: Callable[[Any], None]) -> None:
        """TensorBoard's writer does not come back from an error: it is only a view, and left out from then on."""
        if self.writer is None:
            return
        try:
            write(self.writer)
        except OSError as error:
            say(f"warning: TensorBoard's file cannot be written ({error}); {self.path.name} goes on")
            self.writer = None

    def close(self) -> None:
        self._append()
        if self.unwritten:
            say(f"warning: {self.path} lacks its last {len(self.unwritten):,} bytes")
        self.file.close()
        if self.writer is not None:
            try:
                self.writer.close()
            except OSError as error:
                say(f"warning: TensorBoard's file lacks its end ({error}); {self.path.name} has it")


def finite(value: Any) -> Any:
    """The same value with every NaN and infinity in it as text: JSON has no such numbers."""
    if isinstance(value, dict):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _parse(line: str) -> Row | None:
    """A row, or None for a line that was cut by a kill."""
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None


def progress_bar(shown: bool, *args, **options) -> tqdm:
    """A tqdm bar; in a file, where every refresh is a line, it refreshes every 30 seconds."""
    mininterval = 0.5 if sys.stderr.isatty() else 30
    return tqdm(*args, **options, disable=not shown, dynamic_ncols=True, mininterval=mininterval)


def say(message: str) -> None:
    """A line on the console of rank 0 that leaves the progress bar whole."""
    # set by torchrun and horovodrun, before there is an engine to ask
    if os.environ.get("RANK", os.environ.get("HOROVOD_RANK", "0")) == "0":
        tqdm.write(message)
