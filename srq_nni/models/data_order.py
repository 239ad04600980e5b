"""Training data in an order that a resumed run continues: its next batch, crop and flip are those of an unbroken run.

BasicSR starts the interrupted epoch again, and its workers draw crops and flips from generators of their own. Here the
sampler leaves out what the epoch has shown already, and each sample is drawn from (seed, epoch, place in the epoch).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any, Self

import numpy as np
import torch
from basicsr.data.data_sampler import EnlargedSampler
from torch.utils.data import Dataset


class Place(int):
    """Index of a sample that also knows its epoch and its number in the epoch, over all processes."""

    epoch: int
    number: int

    def __new__(cls, index: int, epoch: int, number: int) -> Self:
        place = super().__new__(cls, index)
        place.epoch, place.number = epoch, number
        return place

    def __reduce__(self) -> tuple[type[Place], tuple[int, int, int]]:
        return type(self), (int(self), self.epoch, self.number)


class ResumedSampler(EnlargedSampler):
    """BasicSR's sampler without the batches of the interrupted epoch that were trained on before."""

    def __init__(self, dataset: Any, num_replicas: int, rank: int, ratio: int = 1, *, done: int = 0) -> None:
        super().__init__(dataset, num_replicas, rank, ratio)
        self._done, self._batch = done, int(dataset.opt["batch_size_per_gpu"])

    def __iter__(self) -> Iterator[Place]:
        batches = self.num_samples // self._batch  # the loader drops the last, smaller one
        shown = min(max(self._done - self.epoch * batches, 0), batches) * self._batch
        places = (
            Place(index, self.epoch, number * self.num_replicas + self.rank)
            for number, index in enumerate(super().__iter__())
        )
        return iter(list(places)[shown:])


class SeededDataset(Dataset[Any]):
    """A dataset whose random choices for a sample follow from the seed and the sample's place alone."""

    def __init__(self, dataset: Any, seed: int) -> None:
        self._dataset, self._seed = dataset, seed

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Any:
        if isinstance(index, Place):
            words = np.random.SeedSequence([self._seed, index.epoch, index.number]).generate_state(3)
            random.seed(int(words[0]))
            np.random.seed(int(words[1]))
            torch.manual_seed(int(words[2]))
        return self._dataset[int(index)]


def install() -> None:
    """Let BasicSR's ``train_pipeline`` read its data in this order."""
    import basicsr.train

    done = [0]
    basicsr.train.load_resume_state = _remembering(basicsr.train.load_resume_state, done)
    basicsr.train.EnlargedSampler = lambda *args: ResumedSampler(*args, done=done[0])
    basicsr.train.build_dataloader = _seeding(basicsr.train.build_dataloader)


def _remembering(load: Callable[[dict[str, Any]], Any], done: list[int]) -> Callable[[dict[str, Any]], Any]:
    def load_resume_state(opt: dict[str, Any]) -> Any:
        state = load(opt)
        done[0] = 0 if state is None else int(state["iter"])
        return state

    return load_resume_state


def _seeding(build: Callable[..., Any]) -> Callable[..., Any]:
    def build_dataloader(dataset: Any, dataset_opt: dict[str, Any], **settings: Any) -> Any:
        if dataset_opt["phase"] == "train":
            dataset = SeededDataset(dataset, int(settings["seed"]))
            if not dataset_opt["num_worker_per_gpu"] and dataset_opt.get("prefetch_mode") == "cpu":
                # Without a worker, the thread that prefetches would share its generators with the training step.
                dataset_opt = {**dataset_opt, "prefetch_mode": None}
        return build(dataset, dataset_opt, **settings)

    return build_dataloader
