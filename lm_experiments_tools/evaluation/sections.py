"""The parts of a report: each writes its tables and pictures, and keeps what the overview shows of them."""

from pathlib import Path

from . import ablation_report, by_place, curves, figures, formats, seeds, tables
from .ablation_report import Ablated
from .by_place import Axis
from .formats import MISSING
from .official_files import Result
from .scoring import Kind
from .seeds import Group

INTERVALS = "In brackets: 95% intervals (Wilson)."


class Section:
    """One part.

    Attributes:
        pictures: names without suffix, of those that are written as PNG and SVG; `shown`, or linked. tables: names of
            files. table_shown: a table in Markdown, for the overview.
    """

    def __init__(self, folder: Path, title: str, text: str):
        self.folder, self.title, self.text = folder, title, text
        self.pictures: dict[str, bool] = {}
        self.tables: list[str] = []
        self.table_shown = ""

    def picture(self, name: str, shown: bool = True) -> list[Path]:
        """Where to draw."""
        self.pictures[name] = shown
        return [self.folder / f"{name}{suffix}" for suffix in (".png", ".svg")]

    def table(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text, encoding="utf-8")
        self.tables.append(name)

    def as_markdown(self) -> str:
        images = [f"![{self.title}: {name}]({name}.png)" for name, shown in self.pictures.items() if shown]
        files = [f"{name}.png" for name, shown in self.pictures.items() if not shown] + self.tables
        links = "Files: " + ", ".join(f"[{name}]({name})" for name in files) if files else ""
        parts = [f"## {self.title}", self.text, *images, self.table_shown.strip(), links]
        return "\n\n".join(part for part in parts if part)


def of_scores(folder: Path, results: list[Result], kind: Kind) -> Section:
    """Tasks by lengths; tables of several models are not shown, as they are side by side in the next part."""
    all_grids = tables.grids(results)
    section = Section(folder, "Scores by task and length", INTERVALS if len(all_grids) == 1 else "")
    for one in tables.KINDS:
        figures.draw_heat_map(all_grids, section.picture(f"heat_map_{one}", one == kind), one)
    section.table("scores.md", tables.as_markdown(results))
    section.table("scores.csv", tables.as_csv(results))
    section.table("scores.tex", tables.as_latex(results))
    section.table_shown = tables.as_markdown(results, [kind], "###") if len(all_grids) == 1 else ""
    return section


def of_seeds(folder: Path, groups: list[Group], kind: Kind) -> Section:
    """Models, and groups of seeds, side by side."""
    section = Section(folder, "Models side by side", f"Over seeds: mean ± sample standard deviation. {INTERVALS}")
    if any(len(group.grids) > 1 for group in groups):
        figures.draw_mean_heat_map(groups, section.picture("heat_map_mean"), kind)
    section.table("comparison.md", seeds.as_markdown(groups))
    section.table("comparison.csv", seeds.as_csv(groups))
    section.table("comparison.tex", seeds.as_latex(groups))
    section.table_shown = seeds.as_markdown(groups, [kind], "###")
    return section


def of_lengths(folder: Path, groups: list[Group], kind: Kind) -> Section:
    known = any(group.about.trained_tokens for group in groups)
    marks = "Grey, or left of a line: trained; N x: so many times the longest trained." if known else ""
    text = f"{marks} 0k: the facts alone. The table has averages over tasks.".strip()
    section = Section(folder, "By length, and beyond the trained lengths", text)
    curves.draw_extrapolation(groups, section.picture("extrapolation"), kind)
    section.table_shown = seeds.lengths_markdown(groups, kind)
    return section


def of_places(folder: Path, axis: Axis, groups: list[Group], kind: Kind) -> Section:
    """By one quantity of the facts; of depths also a map by length for each task."""
    lengths = by_place.pooled_lengths(axis, groups)
    shared = ", those that all models have" if axis.pools_shared and len(groups) > 1 else ""
    seeds_too = "; seeds are pooled" if any(len(group.grids) > 1 for group in groups) else ""
    text = f"By {axis.title}, {by_place.in_words(lengths)}{shared}{seeds_too}. {INTERVALS}"
    section = Section(folder, f"By {axis.name} of the facts", text)
    if axis.is_curve:
        curves.draw_by_place(axis, groups, section.picture(axis.name), kind)
    if axis.name == "depth":
        for task in groups[0].tasks:
            if by_place.bins(axis, groups, task):
                figures.draw_depth_map(axis, groups, task, section.picture(f"depth_by_length_{task}"), kind)
    section.table_shown = by_place.pooled_markdown(axis, groups, kind)
    by_length = by_place.by_length_markdown(axis, groups, kind)
    section.table(f"{axis.name}.md", f"# {section.title}\n\n{text}\n\n{section.table_shown}\n{by_length}")
    section.table(f"{axis.name}.csv", by_place.as_csv(axis, groups))
    return section


def of_ablations(folder: Path, models: list[Ablated], kind: Kind) -> Section:
    text = "true: with the memory of the sample itself; zero: with an empty one; other: with that of another sample; "
    text += f"freeze:K: with that of its first K segments. {INTERVALS}"
    section = Section(folder, "With another memory", text)
    curves.draw_ablations(models, section.picture("ablations"), kind)
    section.table("ablations.md", ablation_report.as_markdown(models))
    section.table("ablations.csv", ablation_report.as_csv(models))
    section.table("ablations.tex", ablation_report.as_latex(models))
    section.table_shown = ablation_report.as_markdown(models, [kind], "###")
    return section


def overview(groups: list[Group], parts: list[Section], kind: Kind) -> str:
    """One page with all pictures and short tables."""
    head = (
        "# BABILong\n\nMade by `python -m lm_experiments_tools.evaluation.report`. Curves, depth maps and tables here"
    )
    head += f" show the {tables.KINDS[kind]}, in percent; CSV files hold both scores."
    return "\n\n".join([head, _models(groups), *(part.as_markdown() for part in parts)]) + "\n"


def _models(groups: list[Group]) -> str:
    """What the results are of."""
    rows = []
    for group in groups:
        results = [result for task in group.tasks for result in group.results(task)]
        counts = [result.score.samples for result in results]
        answers = [answer for result in results for answer in result.answers]
        known = sum(bool(answer.place and answer.place.facts) for answer in answers)
        sizes = (group.about.segment_size, group.about.trained_tokens)
        row = [group.title, tables.prompt_parts(group.grids[0].setting), *(f"{n:,}" if n else MISSING for n in sizes)]
        row.append(f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}")
        rows.append([*row, f"{known:,} of {sum(counts):,}"])
    header = ("model", "prompt", "tokens of a segment", "trained tokens", "samples a score", "with known facts")
    return formats.as_markdown(header, rows).strip()
