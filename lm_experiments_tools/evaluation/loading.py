"""A saved model, its tokenizer, and what tells it from others."""

import importlib
from pathlib import Path

from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from .. import cli
from ..checkpoint import weights_folder
from ..data.cache import digest
from ..data.tokenizer import load_tokenizer
from ..errors import UserError

COMPARED = 1 << 20  # bytes from each end of a file of weights


def load_model(
    name: str, package: str | None, tokenizer: str | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model on the CPU and its tokenizer.

    Args:
        name: a run, a checkpoint, a saved model, or a hub name. package: is imported first, so that it can register its
            classes. tokenizer: its name or folder; None: the model's own.

    Raises:
        UserError: one of them cannot be loaded.
    """
    source = _source(name)
    if package:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise UserError(f"model_package {package} cannot be imported ({error})") from error
    loaded = load_tokenizer(str(tokenizer or source))
    with cli.mendable(OSError, ValueError, ImportError):
        model = AutoModelForCausalLM.from_pretrained(source)
    return model.eval(), loaded


def _source(name: str) -> Path | str:
    return weights_folder(name) if Path(name).is_dir() else name


def trained_tokens(name: str) -> int | None:
    """Tokens of the longest sample that a model was trained on, by the options of its run; None: not known."""
    source = _source(name)
    for folder in (source.resolve(), *source.resolve().parents[:2]) if isinstance(source, Path) else ():
        if (folder / "config.yaml").is_file():
            options = cli.read_yaml(folder / "config.yaml")
            size, segments, whole = (options.get(name) for name in ("segment_size", "max_n_segments", "sample_size"))
            if whole not in (None, "null"):
                return int(whole)
            return int(segments) * int(size) if segments and size else None  # other runs have no such options
    return None


def fingerprint(name: str) -> str:
    """16 hexadecimal digits of the configuration and of both ends of all weights; of a hub name, the name."""
    source = _source(name)
    if isinstance(source, str):
        return name
    files = sorted([source / "config.json", *source.glob("*.safetensors"), *source.glob("*.bin")])
    return digest(part for file in files if file.is_file() for part in _ends(file))


def _ends(path: Path) -> list[bytes]:
    size = path.stat().st_size
    with open(path, "rb") as file:
        first = file.read(COMPARED)
        file.seek(max(0, size - COMPARED))
        return [str(size).encode(), first, file.read()]
