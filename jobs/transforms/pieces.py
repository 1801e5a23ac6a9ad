"""A training set's rows where all answers lie in files: a task puts them beside a piece of the spine.

spine's files | answers of each group  ->  rows for Spark to go on with, or files of the dataset, counted and hashed
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import parquet
from pyspark.sql import DataFrame
from pyspark.sql.types import StructField, StructType

from connectors.file_rows import FileRows, made_whole
from connectors.file_store import DRAFT
from connectors.table_files import with_bounds
from feature_defs.model import EVENT_TIME
from feature_defs.splits import SPLIT
from jobs.transforms.arrays import in_tasks, told_by_tasks
from jobs.transforms.direct import PIECE, Block, GroupFiles, blocks_of
from jobs.transforms.row_hash import parts_of
from jobs.transforms.row_hash_kernel import can_hash, row_hashes

_BATCH = 20_000  # rows that are hashed, or given to Spark, at a time


@dataclass(frozen=True)
class Layout:
    """A dataset's columns under the names that the pieces know them by: the spine's own come first, its part last.

    `keys` are those of all groups.
    """

    columns: tuple[tuple[str, str], ...]
    spine: int
    keys: tuple[str, ...]
    outputs: tuple[str, ...]
    has_parts: bool


@dataclass(frozen=True)
class Pieces:
    """The spine's rows with the answers of some groups beside them, of which tasks make a piece each."""

    base: DataFrame
    spine: FileRows
    parts: tuple[GroupFiles, ...]
    folder: str

    def rows(self) -> DataFrame:
        fields = [
            StructField(output, part.schema[feature].dataType)
            for part in self.parts
            for feature, output in part.group.columns
        ]
        return in_tasks(self.base.sparkSession, self._tasks, _batches, StructType([*self.base.schema.fields, *fields]))

    def may_write(self, layout: Layout) -> bool:
        """Whether tasks can write a dataset of these columns, and tell its hash."""
        types = {
            output: part.files.schema.field(name).type for part in self.parts for name, output in part.group.columns
        }
        types |= {field.name: field.type for field in self.spine.schema}
        return all(held in types and can_hash(types[held]) for _, held in layout.columns)

    def write(self, layout: Layout, folder: str) -> dict[str, int]:
        """Write the dataset as Parquet files below a folder, and count what training-set counts in its rows.

        Their names are new: who reads a dataset that is replaced meanwhile must miss its files, not find others.
        """
        run = uuid.uuid4().hex

        def written(numbered: tuple[int, _Piece]) -> dict[str, int]:
            number, piece = numbered
            return _written(_table(piece), layout, Path(folder), f"part-{number:05d}-{run}.snappy.parquet")

        Path(folder).mkdir(parents=True, exist_ok=True)
        total: Counter[str] = Counter()
        for told in told_by_tasks(self.base.sparkSession, list(enumerate(self._tasks)), written):
            total.update(told)
        for draft in Path(folder).rglob(f"{DRAFT}*"):  # of an attempt that was killed
            draft.unlink(missing_ok=True)
        return dict(total) | parts_of(total["spine"], "spine") | parts_of(total["row"], "row")

    @property
    def _tasks(self) -> list[_Piece]:
        blocks = tuple(block for part in self.parts for block in blocks_of(part, self.folder))
        return [
            _Piece(self.spine, blocks, file, batch, start, min(PIECE, count - start))
            for file, count in enumerate(self.spine.counts())
            for batch, start in enumerate(range(0, count, PIECE))
        ]


@dataclass(frozen=True)
class _Piece:
    """A task: rows of one file of the spine, and the batch of answers that belongs to them."""

    spine: FileRows
    blocks: tuple[Block, ...]
    file: int
    batch: int
    start: int
    rows: int


# in a task


def _table(piece: _Piece) -> pa.Table:
    rows = piece.spine.file(piece.file).read(piece.spine.schema.names, piece.start, piece.start + piece.rows)
    columns = dict(zip(rows.column_names, rows.columns, strict=True))
    for block in piece.blocks:
        with pa.memory_map(str(block.file(piece.file))) as source:
            found = pa.ipc.open_file(source).get_batch(piece.batch)
        columns.update(zip((output for _, output in block.columns), found.columns, strict=True))
    return pa.table(columns).combine_chunks()


def _batches(piece: _Piece) -> Iterator[pa.RecordBatch]:
    yield from _table(piece).to_batches(max_chunksize=_BATCH)


def _written(table: pa.Table, layout: Layout, folder: Path, file: str) -> dict[str, int]:
    """Write a piece, a file for each part of the dataset, and count."""
    names = [name for name, _ in layout.columns]
    rows = pa.table([table.column(held) for _, held in layout.columns], names=names)
    told = Counter({"rows": len(rows), "null_time": table.column(EVENT_TIME).null_count})
    told["null_key"] = _any_null([table.column(key) for key in layout.keys])
    told.update({f"value_{i}": len(rows) - table.column(name).null_count for i, name in enumerate(layout.outputs)})
    for batch in rows.to_batches(max_chunksize=_BATCH):
        spine = row_hashes(batch.columns[: layout.spine], len(batch))
        row = row_hashes(batch.columns[layout.spine :], len(batch), spine)
        told.update(spine=int(spine.sum()), row=int(row.sum()))
    if not layout.has_parts:
        _write_parquet(rows, folder / file)
        return told
    for part in pc.unique(rows.column(SPLIT)).to_pylist():
        (folder / f"{SPLIT}={part}").mkdir(exist_ok=True)
        own = rows.filter(pc.equal(rows.column(SPLIT), part)).drop_columns([SPLIT])
        told[f"part_{part}"] = len(own)
        _write_parquet(own, folder / f"{SPLIT}={part}" / file)
    return told


def _any_null(columns: Sequence[pa.ChunkedArray]) -> int:
    nulls = [column.is_null().to_numpy() for column in columns if column.null_count]
    return int(np.count_nonzero(np.logical_or.reduce(nulls))) if nulls else 0


def _write_parquet(rows: pa.Table, path: Path) -> None:
    with made_whole(path) as draft:  # a column whose values hardly repeat gives its dictionary up early
        parquet.write_table(
            rows,
            draft,
            compression="snappy",
            dictionary_pagesize_limit=1 << 16,
            write_statistics=with_bounds(rows.schema),
            store_schema=False,
        )
