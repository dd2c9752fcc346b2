"""The tokenizer of a run: a given one, or a byte-level BPE trained on the task and the background text."""

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ..errors import UserError
from .cache import default_cache_dir, digest

PAD, EOS, GEN = "<pad>", "<eos>", "GEN"


def load_tokenizer(name_or_path: str) -> PreTrainedTokenizerBase:
    """A Hugging Face tokenizer by hub name or folder.

    Raises:
        UserError: it cannot be loaded, or has no end-of-text token, with which answers and documents end.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_path)
    except (OSError, ValueError) as error:
        raise UserError(
            f"no tokenizer under {name_or_path!r}: neither a folder that has one nor a name on a hub that can be "
            f"reached ({str(error).splitlines()[0]})"
        ) from error
    if tokenizer.eos_token_id is None:
        raise UserError(f"tokenizer {name_or_path!r} has no eos_token; answers and documents end with one")
    return tokenizer


def train_tokenizer(
    texts: Iterable[str], identity: str, vocab_size: int, cache_dir: Path | None = None
) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE, or load what an earlier run trained on the same texts (named by `identity`)."""
    folder = Path(cache_dir or default_cache_dir()) / f"tokenizer-{digest(['bpe-1', identity, str(vocab_size)])}"
    if not folder.exists():
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[PAD, EOS, GEN],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        backend.train_from_iterator(texts, trainer)
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token=PAD, eos_token=EOS)
        temporary = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
        tokenizer.save_pretrained(temporary)
        try:
            temporary.rename(folder)
        except OSError:  # another process was first
            shutil.rmtree(temporary)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def tokenizer_identity(tokenizer: PreTrainedTokenizerBase) -> str:
    """What its tokens depend on, for cache names."""
    if tokenizer.is_fast:
        return digest([tokenizer.backend_tokenizer.to_str()])
    return digest([tokenizer.name_or_path, *sorted(tokenizer.get_vocab())])


def vocabulary_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """What its token ids mean: tokenizers that agree in it read each other's tokens."""
    by_id = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    return digest(f"{number} {token}" for token, number in by_id)


def sample_texts(texts: Iterable[str], num_characters: int) -> Iterable[str]:
    """The first texts, `num_characters` in all, a few thousand characters at a time."""
    left = num_characters
    for text in texts:
        for start in range(0, min(len(text), left), 4096):
            yield text[start : min(start + 4096, left)]
        left -= len(text)
        if left <= 0:
            return
