"""Which samples an update sees: a pure function of (seed, position), whatever the ranks, workers and resumes.

Position p of the endless stream belongs to epoch p // len(dataset); each epoch is a permutation keyed by (seed, epoch).
"""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Dataset, Sampler

SampleKey = tuple[int, int]  # epoch, index


class KeyedDataset(Dataset):
    """Reads `(epoch, index)`: by `dataset.sample(epoch, index)` where the dataset has it, else by `dataset[index]`."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset
        self.by_epoch = hasattr(dataset, "sample")

    def __getitem__(self, key: SampleKey):
        epoch, index = key
        return self.dataset.sample(epoch, index) if self.by_epoch else self.dataset[index]


class TrainSampler(Sampler[list[SampleKey]]):
    """Endless micro-batches of one rank, from a position of the stream on.

    Update u with global batch G = batch * accumulation * ranks has positions u * G to (u + 1) * G - 1; its
    micro-batch a on rank r takes the (a * ranks + r)-th `batch` of them.
    """

    def __init__(self, size: int, batch: int, seed: int, rank: int, world_size: int, start: int):
        self.size, self.batch, self.seed = size, batch, seed
        self.rank, self.world_size, self.start = rank, world_size, start

    def __iter__(self) -> Iterator[list[SampleKey]]:
        position = self.start + self.rank * self.batch
        epoch, order = -1, None
        while True:
            keys = []
            for place in range(position, position + self.batch):
                if place // self.size != epoch:
                    epoch = place // self.size
                    order = epoch_order(self.size, self.seed, epoch)
                keys.append((epoch, int(order[place % self.size])))
            yield keys
            position += self.batch * self.world_size


def epoch_order(size: int, seed: int, epoch: int) -> np.ndarray:
    """Permutation of one epoch."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, epoch)))).permutation(size)
