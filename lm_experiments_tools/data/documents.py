"""Documents of a source, in a fixed order: a file of plain text is one, and so is a row of a dataset, or what several
rows make together.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ..errors import UserError
from .background import Source
from .cache import digest, file_digest
from .rows import load_rows, read_text, require_column, text_files


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
        split, config, column, streaming: of a dataset, see `rows.load_rows`.
        document_start: rows are lines, and one that this regular expression is found in begins a document.

    Raises:
        UserError: nothing is found under a name, no such column, or no regular expression.
    """
    files = [file for name in names for file in text_files(Path(name).expanduser())]
    if files:
        identity = digest(f"{file.name} {file_digest(file)}" for file in files)
        return Source(" ".join(names), identity, lambda: map(read_text, files))
    if len(names) > 1:
        raise UserError(f"no .txt file in any of {', '.join(names)}: give files or folders of text, or one dataset")
    try:
        start = re.compile(document_start) if document_start else None
    except re.error as error:
        raise UserError(f"document_start {document_start!r} is no regular expression ({error})") from error
    data = load_rows(names[0], split, config, streaming)
    require_column(data, names[0], column)
    content = names[0] if streaming else data._fingerprint
    identity = [content, split, config or "", column, document_start or ""]

    def texts() -> Iterable[str]:
        rows = (row[column] or "" for row in data.select_columns([column]))
        return rows if start is None else _joined(rows, start)

    return Source(f"{names[0]} {split}", digest(identity), texts)


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
