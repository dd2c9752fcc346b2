"""Tasks whose samples end with an answer: the labelled tokens, with end-of-text last."""

from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

SHOWN_TOKENS = 40  # of a sample before its answer, where predictions are shown
Batch = dict[str, torch.Tensor]


def exact_match(batch: Batch, output: Any) -> Batch:
    """Share of samples whose whole answer, with its end, is predicted: what greedy decoding would write.

    With generated text in the output, also the share whose generated answer is right, which is the same.
    """
    labels = batch["labels"][:, 1:]
    row, column = (labels != -100).nonzero(as_tuple=True)
    metrics = {"exact_match": _rows_all_right(output["target_logits"].argmax(-1) == labels[row, column], row, labels)}
    if "generation_outputs" in output:
        generated = output["generation_outputs"][:, batch["labels"].shape[1] :]
        place = column - (labels != -100).int().argmax(1)[row]  # of a label in its answer
        written = place < generated.shape[1]
        right = generated[row, place.clamp(max=generated.shape[1] - 1)] == labels[row, column]
        metrics["exact_match_generated"] = _rows_all_right(written & right, row, labels)
    return metrics


def _rows_all_right(right: torch.Tensor, row: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    wrong = torch.zeros(len(labels), device=labels.device).index_add(0, row, (~right).float())
    return (wrong == 0).float().mean()


def prompts(batch: Batch) -> Batch:
    """What to generate from: everything before the first label; the answer is masked."""
    before_answer = (batch["labels"] != -100).cumsum(dim=1) == 0
    return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"] * before_answer}


def examples(tokenizer: PreTrainedTokenizerBase, batch: Batch, output: Any) -> list[str]:
    """A text for each sample: the end of its context with the question, the predicted and the right answer."""
    labels, predicted = batch["labels"], output["target_logits"].argmax(-1)
    row = (labels[:, 1:] != -100).nonzero()[:, 0]
    texts = []
    for index, (ids, answer) in enumerate(zip(batch["input_ids"], labels != -100)):
        before = ids[answer.cumsum(0) == 0][-SHOWN_TOKENS:]
        parts = [tokenizer.decode(tokens) for tokens in (before, predicted[row == index], ids[answer])]
        texts.append("...{}\npredicted:{}\nright:{}".format(*parts))
    return texts


def trainer_options(tokenizer: PreTrainedTokenizerBase, answer_size: int) -> dict[str, Any]:
    """Keyword arguments of the Trainer that all such tasks share.

    Args:
        answer_size: most tokens of an answer, with its end.
    """
    end = tokenizer.eos_token_id
    return {
        "batch_metrics_fn": exact_match,
        "forward_kwargs": {"output_memory_state": False, "output_target_logits": True},
        "generate_kwargs": {
            "max_new_tokens": answer_size, "do_sample": False, "eos_token_id": end, "pad_token_id": end,
        },
        "generate_inputs_fn": prompts,
        "examples_fn": lambda batch, output: examples(tokenizer, batch, output),
    }  # fmt: skip
