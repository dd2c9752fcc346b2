"""Tiny prepared corpora of one tokenizer, and backbones for them, for the tests."""

import numpy as np
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from lm_experiments_tools.data import language_modeling, tokenizer

SEGMENT = 16
SENTENCES = [
    f"{who} {did} the {what}. " for who in ("Ann", "Bo", "Cy") for did in ("saw", "met") for what in ("whale", "ship")
]
TOKENS = 280  # of the tokenizer


def text(number, sentences):
    return "".join(np.random.default_rng(number).choice(SENTENCES, sentences))


def make_shared(folder):
    """In a folder: corpora/{train,test,short}, their texts beside it, tokenizer, llama, llama-weights and gpt2."""
    made = {
        "train": [text(n, 120) for n in range(6)],
        "test": [text(n, 100) for n in (7, 8)],
        "short": ["Ann met Bo."] * 9,
    }
    tokenizer.train_tokenizer(made["train"], "pretraining", TOKENS, folder).save_pretrained(folder / "tokenizer")
    for name, texts in made.items():
        (folder / name).mkdir()
        for number, content in enumerate(texts):
            (folder / name / f"{number}.txt").write_text(content)
        prepare(folder / name, folder / "corpora" / name, tokenizer=str(folder / "tokenizer"))
    sizes = dict(vocab_size=TOKENS, bos_token_id=1, eos_token_id=1)
    llama().save_pretrained(folder / "llama")
    LlamaForCausalLM(llama(**sizes)).save_pretrained(folder / "llama-weights")
    GPT2LMHeadModel(GPT2Config(**sizes, n_positions=256, n_embd=16, n_layer=2, n_head=2)).save_pretrained(
        folder / "gpt2"
    )
    for name in ("llama-weights", "gpt2"):
        tokenizer.load_tokenizer(str(folder / "tokenizer")).save_pretrained(folder / name)
    return folder


def llama(**options):
    sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2)
    return LlamaConfig(**dict(vocab_size=TOKENS, max_position_embeddings=256) | sizes | options)


def prepare(*paths, **options):
    """Inputs, and behind them the folder of the corpus."""
    *inputs, output = map(str, paths)
    options = dict(input=inputs, output=output, processes=1) | options
    return language_modeling.prepare(language_modeling.PrepareArgs(**options))
