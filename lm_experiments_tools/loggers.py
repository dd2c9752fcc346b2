"""The log of a run: `log.jsonl` is the record, TensorBoard the view of it."""

import json
import math
import os
import sys
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
        self.file = open(self.path, "a", encoding="utf-8")
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
        self.file.write(json.dumps(row, allow_nan=False) + "\n")
        self.file.flush()
        for name, value in values.items():
            self.writer.add_scalar(f"{name}/iterations/{split}", value, update)
            self.writer.add_scalar(f"{name}/samples/{split}", value, samples)

    def write_rates(self, update: int, rates: list[float]) -> None:
        """Learning rates of the parameter groups, under `lr/iterations/param_group_N`."""
        for group, rate in enumerate(rates):
            self.writer.add_scalar(f"lr/iterations/param_group_{group}", rate, update)

    def close(self) -> None:
        self.file.close()
        self.writer.close()


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
    if os.environ.get("RANK", "0") == "0":  # set by torchrun, before there is an engine to ask
        tqdm.write(message)
