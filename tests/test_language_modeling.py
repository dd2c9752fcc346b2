"""Samples of documents: cut and packed without reading across borders, in an order that is keyed."""

from collections import Counter

import numpy as np
import pytest
import torch
from tiny_books import make_books, make_words
from tiny_models import close
from torch.utils.data import DataLoader
from transformers import LlamaConfig

from lm_experiments_tools.data.pieces import (
    Evenly,
    Mixture,
    PieceDataset,
    collate_rows,
    cut,
    even_step,
    pack,
    whole_windows,
)
from lm_experiments_tools.sampling import KeyedDataset, TrainSampler
from modeling_armt import ArmtForCausalLM


@pytest.fixture(scope="module")
def books(tmp_path_factory):
    folder = tmp_path_factory.mktemp("books")
    return make_books(folder, make_words(folder))


@pytest.mark.parametrize("segments", [1, 3, 8])
def test_every_token_but_a_documents_first_is_a_target_once_an_epoch(books, segments):
    dataset = PieceDataset(books, 16, segments)
    targets, borders = Counter(), {}
    for index in range(len(dataset)):
        places = dataset.order[dataset.borders[index] : dataset.borders[index + 1]]
        cost = 0
        for place, row in zip(places, dataset[index], strict=True):
            document, start = int(dataset.pieces.document[place]), int(dataset.pieces.start[place])
            assert np.array_equal(row, books.read(document, start, start + len(row)))
            targets.update((document, start + offset) for offset in range(1, len(row)))
            cost += -(-len(row) // 16)
        assert cost <= segments
        borders[index] = cost
    expected = {(document, place) for document, size in enumerate(books.sizes) for place in range(1, size)}
    assert targets == dict.fromkeys(expected, 1)
    assert sum(borders.values()) / (segments * len(borders)) > 0.8  # little is wasted


def test_packing_wastes_little_and_loses_nothing():
    costs = np.random.default_rng(0).integers(1, 9, 1000)
    order, borders = pack(costs, 8)
    assert sorted(order) == list(range(1000))
    sums = np.add.reduceat(costs[order], borders[:-1])
    assert sums.max() <= 8 and len(sums) <= 1.03 * costs.sum() / 8


def test_cutting_by_hand():
    pieces = cut(np.array([1, 2, 10, 5]), 5)
    assert [tuple(map(int, piece)) for piece in zip(pieces.document, pieces.start, pieces.stop)] == [
        (1, 0, 2), (2, 0, 5), (2, 4, 9), (2, 8, 10), (3, 0, 5)
    ]  # fmt: skip
    windows = whole_windows(np.array([1, 4, 5, 9]), 4)
    assert [tuple(map(int, piece)) for piece in zip(windows.document, windows.start, windows.stop)] == [
        (2, 0, 5), (3, 0, 5), (3, 4, 9)
    ]  # fmt: skip


def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64,
    )  # fmt: skip
    made = ArmtForCausalLM.from_backbone(config, segment_size=16, num_mem_tokens=2, d_mem=4).eval()
    for layer in made.memory_layers.values():
        torch.nn.init.normal_(layer.W_v)
    return made


def test_packed_documents_are_read_as_each_alone(books):
    """Neither attention nor memory passes from one row of a sample to another."""
    dataset, reader = PieceDataset(books, 16, 8), model()
    packed = next(dataset[index] for index in range(len(dataset)) if len(dataset[index]) > 2)
    batch = collate_rows([packed], 0)
    logits = reader(batch["input_ids"], batch["attention_mask"]).logits
    for row, ids in enumerate(packed):
        alone = reader(torch.from_numpy(ids.astype(np.int64))[None]).logits
        close(logits[row, : len(ids)], alone[0])


def test_the_loss_is_that_of_the_whole_logits(books):
    dataset, reader = PieceDataset(books, 16, 4), model()
    batch = collate_rows([dataset[0], dataset[len(dataset) - 1]], 0)
    loss = reader(**batch, output_memory_state=False).loss
    rows = [row.astype(np.int64) for index in (0, len(dataset) - 1) for row in dataset[index]]
    nats = targets = 0
    for row in rows:
        ids = torch.from_numpy(row)[None]
        nats += torch.nn.functional.cross_entropy(reader(ids).logits[0, :-1], ids[0, 1:], reduction="sum")
        targets += len(row) - 1
    close(loss, nats / targets)


def test_varied_samples_are_parts_of_their_piece_and_keyed(books):
    whole, varied = PieceDataset(books, 16, 4), PieceDataset(books, 16, 4, vary=True, stream=(3, 0))
    sizes = Counter()
    for epoch in range(20):
        for index in range(len(whole)):
            rows, again = varied.sample(epoch, index), varied.sample(epoch, index)
            assert all(np.array_equal(*pair) for pair in zip(rows, again, strict=True))
            if len(rows) == 1 and len(whole[index][0]) == 64:
                sizes[len(rows[0])] += 1
                assert bytes(rows[0]) in bytes(whole[index][0])
            elif len(rows) > 1:
                assert [len(row) for row in rows] == [len(row) for row in whole[index]]
    assert sizes.keys() == {16, 32, 48, 64}


def test_a_mixture_reads_each_corpus_evenly_and_by_weight(books):
    parts = [PieceDataset(books.part(0, 5), 16, 2), PieceDataset(books.part(5, 10), 16, 2)]
    plain = Mixture(parts)
    assert len(plain) == sum(map(len, parts))
    mixture = Mixture(parts, [3.0, 1.0])
    assert abs(len(mixture) - len(plain)) <= 1
    tokens, seen = [0, 0], [Counter(), Counter()]
    epochs = 12
    for epoch in range(epochs):
        for index in range(len(mixture)):
            rows = mixture.sample(epoch, index)
            number = int(index >= mixture.starts[1])
            tokens[number] += sum(map(len, rows))
            seen[number][bytes(np.concatenate(rows))] += 1
    assert tokens[0] / sum(tokens) == pytest.approx(0.75, abs=0.03)
    for counts, part in zip(seen, parts):
        assert max(counts.values()) - min(counts.values()) <= 1 and len(counts) == len(part)


def test_an_even_step_visits_all_places():
    for size in (1, 2, 3, 10, 97, 100, 5040):
        assert {index * even_step(size) % size for index in range(size)} == set(range(size))


def test_the_stream_does_not_depend_on_workers_or_ranks(books):
    dataset = Mixture([PieceDataset(books, 16, 2, vary=True, stream=(5, 0))])

    def stream(ranks, workers, batch):
        loaders = []
        for rank in range(ranks):
            sampler = TrainSampler(len(dataset), batch, 7, rank, ranks, start=0)
            loaders.append(
                iter(DataLoader(KeyedDataset(dataset), batch_sampler=sampler, num_workers=workers, collate_fn=list))
            )
        samples = []
        while len(samples) < 40:
            for loader in loaders:
                samples += [b"|".join(bytes(row) for row in rows) for rows in next(loader)]
        return samples[:40]

    assert stream(1, 0, 4) == stream(1, 2, 4) == stream(2, 0, 2) == stream(4, 0, 1)


def test_held_samples_are_spread_and_all_where_there_are_few(books):
    dataset = Mixture([PieceDataset(books, 16, 1, packed=False)])
    assert len(Evenly(dataset, None)) == len(Evenly(dataset, 10**6)) == len(dataset)
    places = Evenly(dataset, 5).places
    assert len(places) == 5 and np.diff(places).min() >= len(dataset) // 5
