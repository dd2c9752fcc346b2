"""Tables of text as CSV, Markdown and LaTeX; shares as percent."""

import csv
import io
import re
from collections.abc import Iterable

from .scoring import Kind, Score

MISSING = "–"

Rows = Iterable[Iterable[str]]


def percent(share: float | None) -> str:
    return MISSING if share is None else f"{100 * share:.1f}"


def with_interval(share: float | None, score: Score | None, kind: Kind, latex: bool = False) -> str:
    """Percent, with the 95 percent interval in brackets where it is the share of a score."""
    if score is None:
        return percent(share)
    low, high = map(percent, score.interval(kind))
    return percent(share) + (rf" {{\scriptsize [{low}, {high}]}}" if latex else f" ({low}–{high})")


def times(number: float) -> str:
    """1.5 -> `1.5x`, 62.5 -> `62x`."""
    return f"{number:.0f}x" if number >= 10 else f"{number:.2g}x"


def shares(scores: Iterable[float | None]) -> list[str]:
    """Cells of a CSV file, from 0 to 1; empty where there is none."""
    return ["" if share is None else f"{share:.6f}" for share in scores]


def as_csv(header: Iterable[str], rows: Iterable[Iterable]) -> str:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows([header, *rows])
    return file.getvalue()


def as_markdown(header: Iterable[str], rows: Rows) -> str:
    lines = [[cell.replace("|", r"\|") for cell in line] for line in (header, *rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def as_latex(title: str, header: Iterable[str], blocks: Iterable[tuple[str, Rows]], labels: int = 1) -> str:
    """A `tabular` for a document with `booktabs`, of blocks with a heading each, which may be empty.

    Args:
        labels: columns on the left that hold words.
    """
    header = list(header)
    lines = [f"% {title}", rf"\begin{{tabular}}{{{'l' * labels}{'c' * (len(header) - labels)}}}"]
    lines += [r"\toprule", _latex_row(header)]
    for heading, rows in blocks:
        lines.append(r"\midrule")
        if heading:
            lines.append(rf"\multicolumn{{{len(header)}}}{{l}}{{{escaped(heading)}}} \\")
        lines += map(_latex_row, rows)
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _latex_row(cells: Iterable[str]) -> str:
    return " & ".join("--" if cell == MISSING else cell.replace("±", r"$\pm$") for cell in cells) + r" \\"


def escaped(text: str) -> str:
    """Text for LaTeX."""
    return re.sub(r"([&%$#_{}])", r"\\\1", text)
