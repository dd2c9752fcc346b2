"""Results in the files of the public BABILong harness.

    RESULTS/MODEL/qa1_1k_instruction_yes_..._system_prompt_no.csv    index, target, output, question
    RESULTS/MODEL/qa1_1k_instruction_yes_..._system_prompt_no.json   prompt, generate_kwargs

Ours beside them: `.jsonl`, where the facts of each sample stand; `evaluation.json`, what the folder was made with; and,
while several ranks work, `.part-RANK`. Rows are appended one by one, so that a killed evaluation goes on where it was.
"""

import csv
import fcntl
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import UserError
from ..loggers import say
from .places import Place, read_places
from .prompts import Prompt
from .scoring import Grade, Score, grade, labels_of

HEADER = ("", "target", "output", "question")  # the index has no name
FILE_NAME = re.compile(r"(qa\d+)_(\d+[kM])_(\w+)")
CLAIM = "evaluation.json"
ABLATED = "ablate_"  # how folders of ablated results begin


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

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """On rank 0, around all that ranks append: settings written or compared, cut rows dropped, parts merged.

        Raises:
            UserError: the file was made with other settings, or another evaluation is at it.
        """
        path = self.csv.with_suffix(".json")
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(self.settings, indent=4), encoding="utf-8")
        elif _read_json(path) != self.settings:
            raise UserError(f"{path} has other prompt or generation settings; give another --results_folder")
        with open(path, "r+b") as settings:  # NFS locks only what is open for writing
            try:
                fcntl.flock(settings, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with the process, however that ends
            except BlockingIOError as error:
                raise UserError(
                    f"another evaluation is writing {self.csv}; wait for it, or leave out its task"
                ) from error
            self.merge()
            yield

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


def claim_folder(folder: Path, made_with: dict[str, Any], about: dict[str, Any]) -> None:
    """Write down what all files of a model's folder are made with, or compare with what was written before.

    Args:
        about: what reports want to know of the model; written, but not compared.

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
    path.write_text(json.dumps(made_with | {"about": about}, indent=2) + "\n", encoding="utf-8")


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); remove it") from error


@dataclass(frozen=True)
class About:
    """What the evaluation knew of a model; None: nothing.

    Attributes:
        segment_size: tokens of a segment. trained_tokens: tokens of the longest samples that it was trained on.
    """

    segment_size: int | None = None
    trained_tokens: int | None = None


class Answer(NamedTuple):
    """One graded answer. place: where the facts of its sample stand, where that was written down."""

    grade: Grade
    place: Place | None


@dataclass(frozen=True)
class Result:
    """Score of a model at one task and length, and what it comes from.

    Attributes:
        model: its folder; of an ablation, a folder `ablate_...` in that. setting: the part of the file name that tells
            the prompt.
    """

    model: str
    setting: str
    task: str
    length: str
    score: Score
    answers: tuple[Answer, ...] = field(default=(), compare=False, repr=False)
    about: About = field(default=About(), compare=False)


def read_folder(folder: Path) -> list[Result]:
    """All results under a folder, which is that of one model or of many; ours or of the public harness.

    A malformed file is named and left out.

    Raises:
        UserError: none is left, or no such folder.
    """
    if not folder.is_dir():
        raise UserError(f"no results folder {folder}")
    results = []
    abouts = {path.parent: _leave_out_malformed(path, _read_about) or About() for path in folder.rglob(CLAIM)}
    for path in sorted(folder.rglob("*.csv"), key=lambda path: (path.parent, path.name)):
        model = path.parent.relative_to(folder)
        if len(model.parts) < 2 and (not model.parts or model.name.startswith(ABLATED)):  # in the folder of the model
            model = folder.resolve().name / model
        result = _leave_out_malformed(path, _read_result, model.as_posix(), abouts.get(path.parent, About()))
        results += [result] if result else []
    if not results:
        raise UserError(f"no results under {folder}: expected files such as qa1_1k_instruction_yes_....csv")
    return results


def _leave_out_malformed(path: Path, read: Callable[..., Any], *args: Any) -> Any:
    """What `read` makes of a file; None, and a warning, where that is malformed."""
    try:
        return read(path, *args)
    except (ValueError, OSError, csv.Error) as error:
        say(f"warning: {path} is left out: {error}")
        return None


def _read_about(path: Path) -> About:
    content = json.loads(path.read_text(encoding="utf-8"))
    about = content.get("about", {}) if isinstance(content, dict) else None
    if not isinstance(about, dict):
        raise ValueError("it does not tell what the results were made with")
    sizes = [about.get(name) for name in ("segment_size", "trained_tokens")]
    if any(size is not None and (not isinstance(size, int) or size < 1) for size in sizes):
        raise ValueError(f"segment_size and trained_tokens are {sizes}, not numbers of tokens")
    return About(*sizes)


def _read_result(path: Path, model: str, about: About) -> Result:
    name = FILE_NAME.fullmatch(path.stem)
    if name is None:
        raise ValueError("its name is not TASK_LENGTH_PROMPT.csv")
    task, length, setting = name.groups()
    labels_of(task)
    rows = _read_rows(path)
    places = _leave_out_malformed(path.with_suffix(".jsonl"), read_places) or {}
    answers = tuple(Answer(grade(task, *row[1:]), places.get(row.index)) for row in rows)
    return Result(model, setting, task, length, Score.of(answer.grade for answer in answers), answers, about)


def _read_rows(path: Path) -> list[Row]:
    """Rows of anybody's file; their index is the first column, whatever its name."""
    with open(path, encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        for column in HEADER[1:]:
            if column not in (reader.fieldnames or ()):
                raise ValueError(f"no column {column}")
        lines = [(line[reader.fieldnames[0]], *(line[column] for column in HEADER[1:])) for line in reader]
    if not lines:
        raise ValueError("no row")
    for number, line in enumerate(lines):
        if None in line:
            raise ValueError(f"row {number} is cut")
    return [Row(int(line[0]) if line[0].isdecimal() else number, *line[1:]) for number, line in enumerate(lines)]
