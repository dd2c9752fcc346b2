"""Documents of a source, in a fixed order: a file of plain text is one, and so is a row of a dataset, or what several
rows make together.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ..errors import UserError
from .background import Source
from .cache import digest, file_digest
from .rows import data_files, load_rows, read_column, read_text, require_column, texts_of

TABLES = (".parquet", ".arrow", ".jsonl")  # a .json beside text is more likely to tell of it


def find_documents(
    names: Sequence[str],
    split: str = "train",
    config: str | None = None,
    column: str = "text",
    streaming: bool = False,
    document_start: str | None = None,
) -> Source:
    """The documents behind some files or folders of text, or one dataset.

    Args:
        names: files or folders of plain text; or a file or folder of Arrow, Parquet or JSON lines, or a hub name.
        split: folders and files may be named after it. config, column, streaming: of a dataset, see `rows.load_rows`.
        document_start: rows are lines, and one that this regular expression is found in begins a document.

    Raises:
        UserError: nothing is found under a name, text and a dataset are mixed, no such split or column, or no regular
            expression.
    """
    files = texts_of(names, split)
    if files:
        _refuse_rows(names, files)
        return Source(" ".join(names), _digest_of(files), lambda: map(read_text, files))
    try:
        start = re.compile(document_start) if document_start else None
    except re.error as error:
        raise UserError(f"document_start {document_start!r} is no regular expression ({error})") from error
    data = load_rows(names[0], split, config, streaming)
    require_column(data, names[0], column)
    if streaming:
        local = data_files(Path(names[0]).expanduser(), split, config)
        content = _digest_of(local) if local else names[0]
    else:
        content = data._fingerprint
    identity = [content, split, config or "", column, document_start or ""]

    def texts() -> Iterable[str]:
        rows = read_column(data, names[0], column)
        return rows if start is None else _joined(rows, start)

    return Source(f"{names[0]} {split}", digest(identity), texts)


def _refuse_rows(names: Sequence[str], texts: Sequence[Path]) -> None:
    """Raise `UserError` where rows stand beside text, which would be left out without a word."""
    for name in names:
        folder = Path(name).expanduser()
        rows = next((file for suffix in TABLES for file in folder.rglob(f"*{suffix}")), None)
        if rows:
            text = next(file for file in texts if file.is_relative_to(folder))
            raise UserError(f"{name} has text, {text.name}, and rows, {rows.name}: give the files of one kind alone")


def _digest_of(files: Iterable[Path]) -> str:
    return digest(f"{file.name} {file_digest(file)}" for file in files)


def _joined(lines: Iterable[str], start: re.Pattern) -> Iterator[str]:
    """Documents of lines."""
    document: list[str] = []
    for line in lines:
        if document and start.search(line):
            yield "".join(document)
            document = []
        document.append(line if line.endswith("\n") else f"{line}\n")
    if document:
        yield "".join(document)
