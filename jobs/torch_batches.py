"""A dataset's batches as tensors, for a PyTorch DataLoader. Imported only when torch is asked for.

    DataLoader(dataset.torch(features=[...], label="churned"), batch_size=None, num_workers=4)

Each of several workers reads its share of the files, so a row comes once however many there are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from torch.utils.data import IterableDataset, get_worker_info

from connectors.dataset_files import DatasetFiles
from jobs.datasets import numbers


class TorchBatches(IterableDataset):  # type: ignore[misc]  # torch ships with types, but is not always there
    """(X, y) in float32 a batch of `rows`, NaN for null; only X without a label."""

    def __init__(self, files: DatasetFiles, features: tuple[str, ...], label: str | None, rows: int) -> None:
        super().__init__()
        self.files, self.features, self.label, self.rows = files, features, label, rows

    def __iter__(self) -> Iterator[object]:
        worker = get_worker_info()
        mine = self.files.files if worker is None else self.files.files[worker.id :: worker.num_workers]
        columns = [*self.features, *([self.label] if self.label is not None else [])]
        for batch in dataclasses.replace(self.files, files=mine).batches(self.rows, columns):
            found = numbers(batch, self.files.path, self.label)
            if isinstance(found, tuple):
                yield tuple(torch.tensor(part, dtype=torch.float32) for part in found)
            else:
                yield torch.tensor(found, dtype=torch.float32)
