"""Answers with another memory than the true one, by a model whose memory is known to matter: it recalls a word."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lm_experiments_tools.data.babilong_stream import Sample
from lm_experiments_tools.errors import UserError
from lm_experiments_tools.evaluation import babilong, official_files, prompts
from lm_experiments_tools.evaluation.ablation import TRUE, parse_ablation
from lm_experiments_tools.evaluation.answering import StreamingAnswerer

SEGMENT, FILLER, NOTHING = 4, 9, 8
PLACES = ["kitchen", "garden", "office", "hallway"]  # tokens 0 to 3


class Recalls:
    """Its memory is the last place that it read; it answers with it, unless a place stands in the open segment."""

    config = SimpleNamespace(segment_size=SEGMENT)
    device = torch.device("cpu")

    def __init__(self):
        self.read_tokens = 0

    def read(self, chunks, progress):
        memory = None
        for chunk in chunks:
            self.read_tokens += chunk.size
            memory = torch.full((len(chunk),), NOTHING) if memory is None else memory
            for row, tokens in enumerate(chunk):
                memory[row] = next((t for t in tokens[::-1].tolist() if t < len(PLACES)), int(memory[row]))
        return memory

    def generate(self, input_ids, attention_mask, memory_state=None, **kwargs):
        memory = torch.full((len(input_ids),), NOTHING) if memory_state is None else memory_state
        answers = []
        for tokens, remembered in zip(input_ids.tolist(), memory.tolist()):
            answers.append(next((t for t in tokens[::-1] if t < len(PLACES)), remembered))
        return torch.cat((input_ids, torch.tensor(answers).unsqueeze(1)), dim=1)


def batch_decode(rows, skip_special_tokens):
    return [PLACES[row[0]] if row[0] < len(PLACES) else "nowhere" for row in rows.tolist()]


class Samples:
    """Sample i names its place in segment i; questions are in the open segment."""

    task, length, prompt = "qa1", "1k", prompts.Prompt()

    def __init__(self, places=(2, 0, 3, 1), segments=5):
        self.places, self.segments = places, segments

    def __len__(self):
        return len(self.places)

    def sample(self, index):
        tokens = np.full(self.segments * SEGMENT + 2, FILLER, dtype=np.int32)
        tokens[index * SEGMENT + 1] = self.places[index]
        return Sample(None, [tokens], [0], len(tokens), (0, len(tokens)), [])

    def size(self, index):
        return self.sample(index).size

    def asked(self, index):
        return f"Where is {index}?", PLACES[self.places[index]]


def answers(folder, ablation, batch_size=2, samples=None):
    """The model's answers to all samples, and how many tokens it read."""
    samples, model = samples or Samples(), Recalls()
    tokenizer = SimpleNamespace(batch_decode=batch_decode)
    file = official_files.TaskFile(folder, "qa1", "1k", samples.prompt, {})
    folder.mkdir()
    job = babilong.Job(file, samples, parse_ablation(ablation), list(range(len(samples))))
    answerer = StreamingAnswerer(model, tokenizer, {"max_new_tokens": 1, "pad_token_id": FILLER})
    with file.prepared():
        babilong.run([job], answerer, batch_size, 0)
    return [row.output for row in file.rows()], model.read_tokens


OWN = ["office", "kitchen", "hallway", "garden"]
EXPECTED = {
    "none": OWN,
    "zero": ["nowhere"] * 4,
    "other": [*OWN[1:], OWN[0]],
    "freeze:1": [OWN[0], *["nowhere"] * 3],
    "freeze:3": [*OWN[:3], "nowhere"],
    "freeze:100": OWN,
}


@pytest.mark.parametrize("batch_size", [1, 3, 4])
@pytest.mark.parametrize("ablation", EXPECTED)
def test_a_model_answers_from_the_memory_that_it_is_given(tmp_path, ablation, batch_size):
    found, _ = answers(tmp_path / "results", ablation, batch_size)
    assert found == EXPECTED[ablation]


def test_what_stands_in_the_open_segment_is_known_without_memory(tmp_path):
    samples = Samples(places=(2, 0, 3), segments=2)  # the third stands beside the question
    assert answers(tmp_path / "results", "zero", samples=samples)[0] == ["nowhere", "nowhere", "hallway"]


def test_no_more_is_read_than_the_memory_needs(tmp_path):
    whole = 4 * 5 * SEGMENT
    assert [answers(tmp_path / name, name)[1] for name in ("none", "zero", "freeze:2")] == [whole, 0, 4 * 2 * SEGMENT]


def test_samples_whose_last_segments_differ_do_not_change_each_others_answers(tmp_path):
    samples = Samples()
    longer = samples.sample(1)
    tokens = np.concatenate((longer.pieces[0], np.full(SEGMENT, FILLER, dtype=np.int32)))
    samples.sample = lambda index, own=samples.sample: (
        Sample(None, [tokens], [0], len(tokens), (0, len(tokens)), []) if index == 1 else own(index)
    )
    for ablation in ("none", "zero", "freeze:2"):
        alone = answers(tmp_path / f"alone-{ablation}", ablation, 1, samples)
        assert answers(tmp_path / f"batch-{ablation}", ablation, 4, samples) == alone


@pytest.mark.parametrize("name", ["nothing", "freeze", "freeze:0", "freeze:x", ""])
def test_an_unknown_ablation_lists_the_known_ones(name):
    with pytest.raises(UserError, match="none, zero, other, and freeze:K"):
        parse_ablation(name)


def test_the_true_score_is_in_the_folder_of_the_model_and_others_below():
    folders = [parse_ablation(name).folder for name in ("none", "zero", "other", "freeze:12")]
    assert folders == ["", "ablate_zero", "ablate_other", "ablate_freeze_12"] and parse_ablation("none") == TRUE
