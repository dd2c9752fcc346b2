"""A report in TensorBoard: a run for each model, whose steps are lengths in tokens, and the pictures."""

from pathlib import Path

from .sections import Section
from .tables import KINDS, Grid, tokens

SUFFIX = ".babilong_report"  # of event files of ours, which a new report replaces


def write(folder: Path, grids: list[Grid], parts: list[Section]) -> None:
    """Scores as `babilong_official/TASK` and `babilong_strict/TASK`, pictures as `babilong/NAME`."""
    from matplotlib import image

    with _writer(folder) as writer:
        for part in parts:
            for name in part.pictures:
                pixels = image.imread(part.folder / f"{name}.png")
                writer.add_image(f"babilong/{name}", pixels[..., :3], dataformats="HWC")
    for grid in grids:
        with _writer(folder / grid.name) as writer:
            for kind in KINDS:
                for task in grid.rows():
                    for length in grid.lengths:
                        share = grid.share(task, length, kind)
                        if share is not None:
                            writer.add_scalar(f"babilong_{kind}/{task}", share, tokens(length))


def _writer(folder: Path):
    from torch.utils.tensorboard import SummaryWriter  # slow to import

    for old in folder.glob(f"*{SUFFIX}"):
        old.unlink()
    return SummaryWriter(str(folder), filename_suffix=SUFFIX)
