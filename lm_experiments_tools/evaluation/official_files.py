"""Results in the files of the public BABILong harness.

    RESULTS/MODEL/qa1_1k_instruction_yes_..._system_prompt_no.csv    index, target, output, question
    RESULTS/MODEL/qa1_1k_instruction_yes_..._system_prompt_no.json   prompt, generate_kwargs

Ours beside them: `.jsonl`, where the facts of each sample stand; `evaluation.json`, what the folder was made with; and,
while several ranks work, `.part-RANK`. Rows are appended one by one, so that a killed evaluation goes on where it was.
"""

import csv
import io
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import UserError
from ..loggers import say
from .prompts import Prompt
from .scoring import Score, labels_of, score_answers

HEADER = ("", "target", "output", "question")  # the index has no name
FILE_NAME = re.compile(r"(qa\d+)_(\d+[kM])_(\w+)")
CLAIM = "evaluation.json"


class Row(NamedTuple):
    index: int
    target: str
    output: str
    question: str


class TaskFile:
    """Results of one task at one length, with one prompt."""

    def __init__(self, folder: Path, task: str, length: str, prompt: Prompt, generate_kwargs: dict[str, Any]):
        self.csv = folder / f"{task}_{length}_{prompt.name}.csv"
        self.settings = {"prompt": asdict(prompt), "generate_kwargs": generate_kwargs}

    def prepare(self) -> None:
        """On rank 0, before any rank appends: write or compare the settings, drop cut rows, merge parts left behind.

        Raises:
            UserError: the file was made with other settings.
        """
        path = self.csv.with_suffix(".json")
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(self.settings, indent=4), encoding="utf-8")
        elif _read_json(path) != self.settings:
            raise UserError(f"{path} has other prompt or generation settings; give another --results_folder")
        self.merge()

    def append(self, row: Row, rank: int = 0) -> None:
        with open(self._part(rank), "a", encoding="utf-8", newline="") as file:
            file.write(("" if file.tell() or rank else _as_csv([HEADER])) + _as_csv([row]))

    def merge(self) -> None:
        """Bring the rows of all ranks in order into one file."""
        parts = self._parts()
        text = _as_csv([HEADER, *self.rows()])
        if parts or not self.csv.exists() or self.csv.read_bytes() != text.encode():
            temporary = self.csv.with_suffix(".tmp")
            temporary.write_bytes(text.encode())
            temporary.replace(self.csv)
        for part in parts:
            part.unlink()

    def rows(self) -> list[Row]:
        """All whole rows of all ranks, by index."""
        texts = [path.read_bytes().decode(errors="replace") for path in (self.csv, *self._parts()) if path.exists()]
        rows = {row.index: row for text in texts for row in _whole_rows(text)}
        return [rows[index] for index in sorted(rows)]

    def missing(self, count: int) -> list[int]:
        """Which of the first `count` samples have no row."""
        return sorted(set(range(count)) - {row.index for row in self.rows()})

    def _part(self, rank: int) -> Path:
        return self.csv.with_suffix(f".part-{rank}") if rank else self.csv

    def _parts(self) -> list[Path]:
        return sorted(self.csv.parent.glob(f"{self.csv.stem}.part-*"))


def _as_csv(rows: Iterable[Iterable]) -> str:
    """Rows as pandas writes them; without carriage returns and NUL, which readers stumble over."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerows([str(value).replace("\r", "\n").replace("\0", "") for value in row] for row in rows)
    return file.getvalue()


def _whole_rows(text: str) -> list[Row]:
    """Rows of a file of ours but the header and, if the last line break is not its end, the last one."""
    rows = list(csv.reader(io.StringIO(text, newline="")))
    if rows and text != _as_csv(rows):
        rows.pop()
    return [Row(int(row[0]), *row[1:]) for row in rows if row[0]]


def claim_folder(folder: Path, made_with: dict[str, Any]) -> None:
    """Write down what all files of a model's folder are made with, or compare with what was written before.

    Raises:
        UserError: the folder holds results of something else.
    """
    path = folder / CLAIM
    if path.exists():
        before = _read_json(path)
        for name, value in made_with.items():
            if before.get(name) != value:
                raise UserError(
                    f"{folder} holds other results: {name} was {before.get(name)!r} there and is {value!r} now; "
                    "give another --results_folder or --model_name"
                )
        return
    if any(folder.glob("qa*.csv")):
        raise UserError(f"{folder} holds results that were not written by this command; give another --model_name")
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(made_with, indent=2) + "\n", encoding="utf-8")


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); remove it") from error


@dataclass(frozen=True)
class Result:
    """Score of a model at one task and length. setting: the part of the file name that tells the prompt."""

    model: str
    setting: str
    task: str
    length: str
    score: Score


def read_folder(folder: Path) -> list[Result]:
    """All results under a folder, which is that of one model or of many; ours or of the public harness.

    A malformed file is named and left out.

    Raises:
        UserError: none is left, or no such folder.
    """
    if not folder.is_dir():
        raise UserError(f"no results folder {folder}")
    results = []
    for path in sorted(folder.rglob("*.csv")):
        try:
            results.append(_read_result(path, folder))
        except (ValueError, OSError, csv.Error) as error:
            say(f"warning: {path} is left out: {error}")
    if not results:
        raise UserError(f"no results under {folder}: expected files such as qa1_1k_instruction_yes_....csv")
    return results


def _read_result(path: Path, folder: Path) -> Result:
    name = FILE_NAME.fullmatch(path.stem)
    if name is None:
        raise ValueError("its name is not TASK_LENGTH_PROMPT.csv")
    task, length, setting = name.groups()
    labels_of(task)
    with open(path, encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        for column in HEADER[1:]:
            if column not in (reader.fieldnames or ()):
                raise ValueError(f"no column {column}")
        rows = [tuple(row[column] for column in HEADER[1:]) for row in reader]
    if not rows:
        raise ValueError("no row")
    for number, row in enumerate(rows):
        if None in row:
            raise ValueError(f"row {number} is cut")
    model = path.parent.relative_to(folder).as_posix()
    return Result(folder.resolve().name if model == "." else model, setting, task, length, score_answers(task, rows))
