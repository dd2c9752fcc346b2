"""Rows of datasets: local files of Arrow, Parquet or JSON lines, a saved Hugging Face dataset, or one of the hub."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError

KINDS = {".parquet": "parquet", ".arrow": "arrow", ".jsonl": "json", ".json": "json"}  # suffix -> loader of `datasets`
SPLITS = ("train", "validation", "valid", "dev", "test")  # what file names call them


def text_files(path: Path, split: str | None = None) -> list[Path]:
    """Plain text in a file or below a folder, in order of names; of a dataset none.

    Args:
        split: take only what folders (`train/`) or files (`train.txt`) of this name hold, if any is named after a
            split; None: all.

    Raises:
        UserError: none is named after this split.
    """
    if path.is_file() and path.suffix not in KINDS:
        return [path]
    return _of_part(sorted(path.rglob("*.txt")), path, split) if path.is_dir() else []


def texts_of(names: Sequence[str], split: str | None = None) -> list[Path]:
    """Plain text behind all names, see `text_files`; of one dataset none.

    Raises:
        UserError: one of several names has none, and would be left out without a word.
    """
    found = [text_files(Path(name).expanduser(), split) for name in names]
    if len(names) > 1 and not all(found):
        missing = next(name for name, files in zip(names, found) if not files)
        raise UserError(
            f"no text in {missing}, there is no .txt file in it: give files or folders of text, or one dataset alone"
        )
    return sum(found, [])


def read_text(path: Path) -> str:
    """A file of UTF-8 text.

    Raises:
        UserError: it is none.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error})") from error


def load_rows(name: str, split: str, config: str | None = None, streaming: bool = False) -> Any:
    """A `datasets.Dataset`, or an `IterableDataset` with `streaming`.

    Args:
        name: a file, a folder, or a hub name. config: of a hub dataset, or a folder in a copy of one.
        streaming: rows are read as they come, without a copy in the cache of `datasets`.

    Raises:
        UserError: nothing can be loaded (of a hub that is not reached: how to do without), a damaged file, no such
            split.
    """
    import datasets  # slow to import

    path = Path(name).expanduser()
    files = data_files(path, split, config)
    try:
        if (path / "state.json").exists() or (path / "dataset_dict.json").exists():
            data = datasets.load_from_disk(str(path))
        elif path.exists():
            kind = KINDS[files[0].suffix] if files else "arrow"
            data = datasets.load_dataset(kind, data_files={split: list(map(str, files))}, streaming=streaming)
        elif config is None and split in datasets.get_dataset_config_names(name):  # earlier scripts give it so
            data = datasets.load_dataset(name, split, split="train", streaming=streaming)
        else:
            data = datasets.load_dataset(name, config, split=split, streaming=streaming)
    except (OSError, ValueError, IndexError, StopIteration, datasets.exceptions.DatasetsError) as error:
        _refuse_damaged(files)
        problem = (
            f"no text under {name!r} (split {split!r}): not a folder with .txt, .parquet, .arrow or .jsonl files and "
            f"not a dataset that can be loaded ({_first_line(error)})"
        )
        if isinstance(error, ConnectionError):
            problem += (
                f"; without the hub, give a local copy: `hf download --repo-type dataset {name} --local-dir FOLDER` "
                "where it can be reached, then FOLDER in place of the name"
            )
        raise UserError(problem) from error
    if isinstance(data, dict):
        if split not in data:
            raise UserError(f"dataset {name!r} has no split {split!r}; its splits are {', '.join(data)}")
        data = data[split]
    return data


def require_column(data: Any, name: str, column: str) -> None:
    """Raise `UserError` unless the rows of dataset `name` have the column; the message lists those found."""
    columns = data.column_names or next((list(row) for row in _rows(data, name)), [])  # of some streams: not known
    if column not in columns:
        raise UserError(f"dataset {name!r} has no column {column!r}; its columns are {', '.join(columns)}")


def read_column(data: Any, name: str, column: str) -> Iterator[str]:
    """Texts of a column of dataset `name`; of null an empty one.

    Raises:
        UserError: it holds something else than text, or a stream breaks off.
    """
    for row in _rows(data.select_columns([column]), name):
        value = row[column]
        if not isinstance(value, str | None):
            raise UserError(f"dataset {name!r}: column {column!r} has no text but values like {value!r:.60}")
        yield value or ""


def _rows(data: Any, name: str) -> Iterator[dict[str, Any]]:
    """Streams meet damaged files, and a hub that is gone, only here."""
    import datasets

    try:
        yield from data
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise UserError(
            f"dataset {name!r} broke off ({_first_line(error)}): it is cut or damaged, or the hub is not reached any "
            "more; whole, or reached again, it is read on by the same command"
        ) from error


def data_files(path: Path, split: str, config: str | None = None) -> list[Path]:
    """The first kind of data file that there is below a folder, of one split and configuration; or the file itself.

    Raises:
        UserError: none is named after this split.
    """
    if path.is_file():
        return [path]
    found = (sorted(path.rglob(f"*{suffix}")) for suffix in KINDS)
    files = next((files for files in found if files), [])
    return _of_part(_of_part(files, path, config), path, split)


def _of_part(files: list[Path], folder: Path, part: str | None) -> list[Path]:
    """Files that are named after a split or configuration; all, where none is named after any split.

    Raises:
        UserError: none is named after this split, but some after others, or it is not that of the training: all splits
            would be the same.
    """

    def names(file: Path) -> set[str]:
        *folders, last = file.relative_to(folder).parts
        return {*folders, *(re.split(r"[-_.]", last) if file.suffix in KINDS else [file.stem])}

    named = [file for file in files if part in names(file)]
    known = {split for file in files for split in SPLITS if split in names(file)}
    if part in SPLITS and files and not named and (known or part != SPLITS[0]):
        others = f"there are {', '.join(sorted(known))}" if known else "nor after any other"
        raise UserError(f"no file in {folder} is named after the split {part!r}; {others}")
    return named or files


def _refuse_damaged(files: list[Path]) -> None:
    """Raise `UserError` for the first file that cannot be read alone: an error of many does not say which."""
    import datasets

    for file in files:
        try:
            datasets.load_dataset(KINDS[file.suffix], data_files=str(file))
        except (OSError, ValueError, StopIteration, datasets.exceptions.DatasetsError) as error:
            raise UserError(f"{file}: cut or damaged, or empty ({_first_line(error.__cause__ or error)})") from error


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
