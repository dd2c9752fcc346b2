"""A model and data that train in milliseconds; run as a program, it is a whole run that tests can kill."""

import sys

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Dataset

from lm_experiments_tools import cli
from lm_experiments_tools.args import TrainerArgs
from lm_experiments_tools.status import reported
from lm_experiments_tools.trainer import Trainer

VOCAB = 11


class TinyLayer(nn.Module):
    """A mean over what came before, mixed."""

    def __init__(self, width):
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x):
        count = torch.arange(1, x.shape[1] + 1, device=x.device)
        return x + torch.tanh(self.linear(x.cumsum(1) / count.unsqueeze(1)))


class TinyModel(nn.Module):
    """An embedding, two layers, dropout and a head; the loss is the mean over labels, shifted inside."""

    _no_split_modules = ("TinyLayer",)

    def __init__(self, width=8, dropout=0.0):
        super().__init__()
        self.embed = nn.Embedding(VOCAB, width)
        self.layers = nn.Sequential(TinyLayer(width), TinyLayer(width))
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(width, VOCAB)

    def forward(self, input_ids, labels):
        logits = self.head(self.drop(self.layers(self.embed(input_ids))))
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
        return {"loss": loss, "logits": logits}


class TinyData(Dataset):
    """Six random tokens; the last 1 to 5 are labelled."""

    def __init__(self, size=37, seed=0):
        self.size, self.seed = size, seed

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return self.sample(0, index)

    def sample(self, epoch, index):
        generator = torch.Generator().manual_seed(self.seed * 10**6 + epoch * 1000 + index)
        ids = torch.randint(VOCAB, (6,), generator=generator)
        labels = ids.clone()
        labels[: 1 + index % 5] = -100
        return {"input_ids": ids, "labels": labels}


def collate(rows):
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def accuracy(batch, output):
    labels = batch["labels"][:, 1:]
    right = (output["logits"][:, :-1].argmax(-1) == labels).float()
    return {"accuracy": (right * (labels != -100)).sum(1).div((labels != -100).sum(1)).mean()}


def make_trainer(args, dropout=0.0, **options):
    torch.manual_seed(args.seed)
    model = TinyModel(dropout=dropout)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr or 0.01)
    options = dict(collate_fn=collate, batch_metrics_fn=accuracy) | options
    return Trainer(args, model, optimizer, TinyData(), TinyData(size=11, seed=1), **options)


def main():
    (args,) = cli.parse(sys.argv[1:], TrainerArgs)
    args.log_interval, args.valid_interval = args.log_interval or 1, args.valid_interval or 1
    trainer = make_trainer(args, dropout=0.1 if args.clip_grad_norm else 0.0)
    with reported(trainer.run, trainer.engine.rank, lambda: trainer.progress.update):
        trainer.train()
    trainer.engine.close()


if __name__ == "__main__":
    cli.run(main)
