"""The published BABILong sets: contexts made by the benchmark's authors, one row a sample, read one row at a time.

    rows = OfficialSet("RMT-team/babilong", "0k", "qa1")  # 100 samples; 0k to 10M tokens
    rows = OfficialSet("RMT-team/babilong-1k-samples", "128k", "qa1")
    rows = OfficialSet("~/data/babilong", "10M", "qa1")
    for row in rows:
        row["input"], row["question"], row["target"]

A folder holds what a snapshot of the hub does, or some of its files:

* `data/qa1/0k.json`, an array of rows: RMT-team/babilong and babilong-train-5k-samples;
* `0k/qa1-00000-of-00001.parquet`, in one or more parts: babilong-1k-samples;
* `0k/qa1/0000.parquet` or `qa1/0k/0000.parquet`: what the hub converts (its branch refs/convert/parquet);
* any of these without or with `data/`, by length or by task first, as `.json`, `.jsonl` or `.parquet`.

The array of a 10M set is one line of 4 GB: files are memory-mapped, and one row (40 MB) is decoded at a time. Of
Parquet it is a row group at a time, the least that its form allows.
"""

import json
import mmap
import re
from collections.abc import Iterator
from contextlib import nullcontext
from functools import cached_property
from itertools import count
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import UserError
from .babi import TASKS, full_task_name

COLUMNS = ("input", "question", "target")
LENGTHS = ("0k", "1k", "2k", "4k", "8k", "16k", "32k", "64k", "128k", "256k", "512k", "1M", "10M")
SHORT_TASKS = [name.split("_")[0] for name in TASKS]
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")  # owner/name
FILES = ("{}/{}-*-of-*.parquet", "{}/{}/*.parquet", "{}/{}.parquet", "{}/{}.jsonl", "{}/{}.json")
BETWEEN_ROWS = re.compile(rb"[\s,]*")
MARK = re.compile(rb'["{}]')


class OfficialSet:
    """Rows of one task at one length: dicts of `input`, `question` and `target`, all text, as published.

    Attributes:
        length, task: short names, as `0k` and `qa1`.
    """

    def __init__(self, path_or_name: str | Path, length: str, task: str):
        """Find the set, in a folder or on the hub, and check its first row.

        Raises:
            UserError: unknown length or task; nothing is there; a file or a row is malformed.
        """
        if length not in LENGTHS:
            raise UserError(f"no length {length!r}; the lengths are {', '.join(LENGTHS)}")
        self.length, self.task = length, full_task_name(task).split("_")[0]
        path = Path(path_or_name).expanduser()
        if path.is_dir():
            files = _find(path, self.length, self.task)
            self._source = ParquetFiles(files) if files[0].suffix == ".parquet" else JsonFile(files[0])
        elif HUB_NAME.fullmatch(str(path_or_name)):
            self._source = HubSet(str(path_or_name), self.length, self.task)
        else:
            raise UserError(f"{path}: no such folder, and not the name of a dataset, as RMT-team/babilong is")
        next(iter(self))

    def __len__(self) -> int:
        return len(self._source)

    def __iter__(self) -> Iterator[dict[str, str]]:
        where = None
        for where, row in self._source:
            yield _checked(row, where)
        if where is None:
            raise UserError(f"{self._source.name}: no row in the file")


class HubSet:
    """Rows of a dataset of the hub, which is memory-mapped Arrow once it is loaded."""

    def __init__(self, name: str, length: str, task: str):
        import datasets  # slow to import, and needed for this source only

        self.name = f"{name}, length {length}, task {task}"
        try:
            self.data = datasets.load_dataset(name, length, split=task)
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            raise UserError(f"{self.name}: cannot be loaded ({_first_line(error)})") from error

    def __len__(self) -> int:
        return len(self.data)

    def __iter__(self) -> Iterator[tuple[str, dict]]:
        return ((f"{self.name}, row {number}", row) for number, row in enumerate(self.data, start=1))


class ParquetFiles:
    """Rows of the files that a set is cut into, one file after the other."""

    def __init__(self, files: list[Path]):
        self.name, self.files = str(files[0]), files

    def __len__(self) -> int:
        sizes = []
        for path in self.files:
            with _open_parquet(path) as file:
                sizes.append(file.metadata.num_rows)
        return sum(sizes)

    def __iter__(self) -> Iterator[tuple[str, dict]]:
        for path in self.files:
            with _open_parquet(path) as file:
                _check_columns(file.schema_arrow.names, str(path))
                batches = file.iter_batches(batch_size=1, columns=list(COLUMNS))
                for number in range(1, file.metadata.num_rows + 1):
                    yield f"{path}, row {number}", _next_batch(batches, path).to_pylist()[0]


class JsonFile:
    """Rows of an array of objects, or of objects one after the other. Only their borders are searched for first."""

    def __init__(self, path: Path):
        self.name, self.path = str(path), path

    @cached_property
    def num_rows(self) -> int:
        with self._mapped() as text:
            return sum(1 for _ in self._borders(text))

    def __len__(self) -> int:
        return self.num_rows

    def __iter__(self) -> Iterator[tuple[str, dict]]:
        with self._mapped() as text:
            for number, (start, stop) in enumerate(self._borders(text), start=1):
                where = f"{self.path}, row {number}"
                try:
                    row = json.loads(text[start:stop])
                except ValueError as error:
                    raise UserError(f"{where}: {error}") from error
                yield where, row

    def _mapped(self):
        if not self.path.stat().st_size:  # nothing to map
            return nullcontext(b"")
        with open(self.path, "rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def _borders(self, text) -> Iterator[tuple[int, int]]:
        """First byte of each row, and the byte behind it."""
        place = BETWEEN_ROWS.match(text).end()
        is_array = text[place : place + 1] == b"["
        end, end_name = (b"]", "array") if is_array else (b"", "file")
        place += is_array
        for number in count(1):
            place = BETWEEN_ROWS.match(text, place).end()
            found = text[place : place + 1]
            if found == end:
                return
            where = f"{self.path}, row {number}"
            if found != b"{":
                found_name = repr(found.decode("latin-1")) if found else "the end of the file"
                raise UserError(f"{where}: expected a row in braces or the end of the {end_name}, found {found_name}")
            stop = _end_of_object(text, place)
            if stop is None:
                raise UserError(f"{where}: the file ends inside the row")
            yield place, stop
            place = stop


def _end_of_object(text, start: int) -> int | None:
    """The byte behind the brace that closes the one at `start`, if it is there."""
    depth, place = 0, start
    while match := MARK.search(text, place):
        place = match.end()
        if match[0] == b'"':
            place = _end_of_string(text, place)
        else:
            depth += 1 if match[0] == b"{" else -1
            if not depth:
                return place
    return None


def _end_of_string(text, start: int) -> int:
    """The byte behind the quote that closes a string; of the text, if none does. 400 MB/s, a pattern 10 to 30."""
    place = start
    while (quote := text.find(b'"', place)) >= 0:
        place = quote + 1
        first = quote
        while text[first - 1 : first] == b"\\":
            first -= 1
        if (quote - first) % 2 == 0:  # else the last backslash belongs to the quote
            return place
    return len(text)


def _open_parquet(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path, memory_map=True)
    except (OSError, pa.ArrowException) as error:
        raise _damaged(path, error) from error


def _next_batch(batches: Iterator[pa.RecordBatch], path: Path) -> pa.RecordBatch:
    try:
        return next(batches)
    except (OSError, pa.ArrowException) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(f"{path}: cut or damaged ({_first_line(error)})")


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _checked(row: dict, where: str) -> dict[str, str]:
    _check_columns(list(row), where)
    for name in COLUMNS:
        if not isinstance(row[name], str):
            raise UserError(f"{where}: {name} is {type(row[name]).__name__}, not text")
    return {name: row[name] for name in COLUMNS}


def _check_columns(names: list[str], where: str) -> None:
    missing = [name for name in COLUMNS if name not in names]
    if missing:
        raise UserError(f"{where}: no column {missing[0]!r}; its columns are {', '.join(names)}")


def _find(folder: Path, length: str, task: str) -> list[Path]:
    """The files of a set in their order: all parts of the first form that is there."""
    files = _files(folder, length, task)
    if not files:
        found = {known: [task for task in SHORT_TASKS if _files(folder, known, task)] for known in LENGTHS}
        names = "; ".join(f"{known}: {', '.join(tasks)}" for known, tasks in found.items() if tasks)
        raise UserError(f"no length {length}, task {task} in {folder}; found {names or 'none'}")
    parts = re.search(r"-of-(\d+)\.parquet$", files[0].name)
    if parts and int(parts[1]) != len(files):
        raise UserError(f"{files[0]}: {len(files)} of {int(parts[1])} parts of the set are there")
    return files


def _files(folder: Path, length: str, task: str) -> list[Path]:
    for root in (folder, folder / "data"):
        for names in ((length, task), (task, length)):
            for form in FILES:
                if files := sorted(root.glob(form.format(*names))):
                    return files
    return []
