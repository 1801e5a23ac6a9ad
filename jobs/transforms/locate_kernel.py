"""Which feature row answers each spine row, in numpy: the partition function of `locate`.

    (keys, packed, other), any order      one number says when and what: time * 32 + tag, a tag a group, one for points
         -> in the order (entity, packed, other)
    point's row of a group                the last one before it, if it is of the same entity: a search in places
    point's known row of a group          the same, of the rows that were created by then

`other` is a row's created_time, null the oldest, or a point's own number. A partition, and so a whole entity, is held
as numbers: some 200 bytes a row, whatever the tables' width. No loop is over rows or entities.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.transforms.arrays import LEAST, Array, Partition, encoded

TAGS = 32
MOST_GROUPS = TAGS - 2
OUT = 100_000  # rows of a batch that is given back


@dataclass(frozen=True)
class Search:
    """What is looked for: `keys` columns, the groups' ttl, the rules of time, and the names of the result's columns."""

    keys: int
    ttls: tuple[int | None, ...]
    strict: bool
    known_by_spine: bool
    names: tuple[str, ...]

    @property
    def point(self) -> int:
        """The points' tag: after the rows of their time, or before them."""
        return 0 if self.strict else TAGS - 1


def tag_of(group: int) -> int:
    return group + 1


def partition_points(search: Search) -> Partition:
    """The partition function: all rows and points of its entities -> (number, keys, what was found) a point."""

    def points_of(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        waiting = [batch for batch in batches if batch.num_rows]
        if waiting:
            yield from _found(_sorted(pa.Table.from_batches(waiting), search), search)

    return points_of


@dataclass(frozen=True)
class _Sorted:
    """Rows and points in the order (entity, time, tag, other); `twins` have all of these alike with a neighbour."""

    entities: tuple[pa.Array, ...]
    entity: Array
    time: Array
    tag: Array
    other: Array
    twins: Array | None


def _sorted(table: pa.Table, search: Search) -> _Sorted:
    columns = [pa.concat_arrays(column.chunks) for column in table.columns]
    entity, entities = encoded(columns[: search.keys])
    packed = columns[search.keys].to_numpy()
    other = columns[search.keys + 1]
    other = (pc.fill_null(other, LEAST) if other.null_count else other).to_numpy()
    order = _order(entity, packed)
    entity, packed = entity[order], packed[order]
    tie = (entity[1:] == entity[:-1]) & (packed[1:] == packed[:-1]) & (packed[1:] % TAGS != search.point)
    twins = None
    if tie.any():
        inside = np.flatnonzero(np.append(False, tie) | np.append(tie, False))
        some = order[inside]
        order[inside] = some[np.lexsort((other[some], packed[inside], entity[inside]))]
        alike = tie & (other[order[1:]] == other[order[:-1]])
        twins = np.append(False, alike) | np.append(alike, False)
    return _Sorted(entities, entity, packed // TAGS, packed % TAGS, other[order], twins)


def _order(entity: Array, packed: Array) -> Array:
    low = int(packed.min())
    width = int(packed.max()) - low + 1
    if (int(entity.max()) + 1) * width < 2**63:  # one number sorts several times faster than two
        return np.argsort(entity * width + (packed - low))
    return np.lexsort((packed, entity))


class _Rows(NamedTuple):
    """For each point the place of a row, where there is one."""

    place: Array
    there: Array


def _found(rows: _Sorted, search: Search) -> Iterator[pa.RecordBatch]:
    points = np.flatnonzero(rows.tag == search.point)
    columns: list[tuple[Array, Array]] = []
    for group, ttl in enumerate(search.ttls):
        columns += _of_group(rows, points, np.flatnonzero(rows.tag == tag_of(group)), ttl, search)
    for start in range(0, len(points), OUT):
        part = slice(start, start + OUT)
        entity = pa.array(rows.entity[points[part]])
        arrays = [pa.array(rows.other[points[part]]), *(key.take(entity) for key in rows.entities)]
        arrays += [pa.array(values[part], mask=~here[part]) for values, here in columns]
        yield pa.RecordBatch.from_arrays(arrays, names=list(search.names))


def _of_group(
    rows: _Sorted, points: Array, places: Array, ttl: int | None, search: Search
) -> Sequence[tuple[Array, Array]]:
    """The clocks of the row that answers and of the one that would by the other rule, whether they differ, whether
    either has a twin."""
    time = rows.time[points]
    newest = _last(rows, points, places)
    known = _known(rows, points, places, newest, search)
    oldest = None if ttl is None else time - ttl
    newest, known = (_alive(rows, found, oldest) for found in (newest, known))
    differ = (newest.there != known.there) | (newest.there & (newest.place != known.place))
    chosen, would = (known, newest) if search.known_by_spine else (newest, known)
    would = _Rows(would.place, would.there & differ)
    twin = np.zeros(len(points), bool)
    if rows.twins is not None:
        for found in (chosen, would):
            twin |= found.there & rows.twins[found.place]
    flags = [(differ, differ), (twin, twin)]  # null where false: a null costs next to nothing
    return [*_clocks(rows, chosen), *_clocks(rows, would), *flags]


def _clocks(rows: _Sorted, found: _Rows) -> Sequence[tuple[Array, Array]]:
    created = rows.other[found.place]
    return [(rows.time[found.place], found.there), (created, found.there & (created != LEAST))]


def _last(rows: _Sorted, points: Array, places: Array) -> _Rows:
    """The last of the places before each point, where it is of the point's entity."""
    if not len(places):
        return _Rows(np.zeros(len(points), np.int64), np.zeros(len(points), bool))
    last = np.searchsorted(places, points) - 1
    place = places[np.maximum(last, 0)]
    return _Rows(place, (last >= 0) & (rows.entity[place] == rows.entity[points]))


def _known(rows: _Sorted, points: Array, places: Array, newest: _Rows, search: Search) -> _Rows:
    """The greatest row by (event_time, created_time) of those created by the point's time.

    Only where the newest was created later: there the entity's rows are gone through in the order in which they became
    known, with the greatest so far. Places are in the order of greatness.
    """
    time = rows.time[points]
    late = newest.there & (rows.other[newest.place] > time)
    if not late.any():
        return newest
    of_late = np.zeros(int(rows.entity[-1]) + 1, bool)
    of_late[rows.entity[points[late]]] = True
    some, asking = places[of_late[rows.entity[places]]], points[late]
    arrival = np.maximum(rows.time[some] + (1 if search.strict else 0), rows.other[some])
    entity = np.concatenate([rows.entity[some], rows.entity[asking]])
    asks = np.repeat([False, True], [len(some), len(asking)])
    order = np.lexsort((asks, np.concatenate([arrival, time[late]]), entity))
    greatest = np.maximum.accumulate(np.concatenate([some, np.full(len(asking), -1)])[order])
    found = np.empty(len(asking), np.int64)
    asked = asks[order]
    found[order[asked] - len(some)] = greatest[asked]
    place, there = newest.place.copy(), newest.there.copy()
    place[late] = np.maximum(found, 0)
    there[late] = (found >= 0) & (rows.entity[place[late]] == rows.entity[asking])
    return _Rows(place, there)


def _alive(rows: _Sorted, found: _Rows, oldest: Array | None) -> _Rows:
    if oldest is None:
        return found
    return _Rows(found.place, found.there & (rows.time[found.place] >= oldest))
