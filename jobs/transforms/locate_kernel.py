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

from jobs.transforms.arrays import GREATEST, LEAST, Array, Partition, encoded, micros_of

TAG_BITS = 5
TAGS = 1 << TAG_BITS
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
            table = pa.Table.from_batches(waiting)
            columns = [pa.concat_arrays(column.chunks) for column in table.columns]
            entity, entities = encoded(columns[: search.keys])
            packed, other = columns[search.keys].to_numpy().copy(), micros_of(columns[search.keys + 1])
            yield from _found(in_order(entity, packed, other, search), entities, search)

    return points_of


@dataclass(frozen=True)
class Sorted:
    """Rows and points in the order (entity, time, tag, other); `twins` have all of these alike with a neighbour.

    `order` is where each was before, and `others` are as they were: few of them are looked at.
    """

    order: Array
    entity: Array
    time: Array
    tag: Array
    others: Array
    twins: Array | None

    def other(self, places: Array) -> Array:
        found: Array = self.others[self.order[places]]
        return found


def in_order(entity: Array, packed: Array, other: Array, search: Search) -> Sorted:
    """`packed` is used up: of many rows a new array costs as much as the work on it."""
    least = int(packed.min(initial=GREATEST))
    order = _order(entity, packed, least)
    entity, time = entity[order], packed[order]
    time += least
    tag = (time & (TAGS - 1)).astype(np.int8)
    time >>= TAG_BITS
    tie = (entity[1:] == entity[:-1]) & (time[1:] == time[:-1]) & (tag[1:] == tag[:-1]) & (tag[1:] != search.point)
    twins, ties = None, np.flatnonzero(tie)
    if len(ties):
        inside = np.flatnonzero(np.append(False, tie) | np.append(tie, False))
        some = order[inside]
        order[inside] = some[np.lexsort((other[some], tag[inside], time[inside], entity[inside]))]
        alike = ties[other[order[ties]] == other[order[ties + 1]]]
        twins = np.zeros(len(order), bool)
        twins[alike] = twins[alike + 1] = True
    return Sorted(order, entity, time, tag, other, twins)


def _order(entity: Array, packed: Array, least: int) -> Array:
    """The order by entity, then by the number, of which the least is subtracted: by its low bits first, then by the
    rest and the entity. Each time places ride along in the numbers that are sorted, since numbers are sorted many times
    faster than places."""
    bits, wide = len(packed).bit_length(), (int(packed.max(initial=LEAST)) - least).bit_length()
    packed -= least  # wraps where it is wider than 63 bits, and back again
    low = min(wide, 63 - bits)
    above = wide - low
    if wide > 63 or int(entity.max(initial=0)).bit_length() + bits > 63:
        return np.lexsort((packed + least, entity))
    order = packed & ((1 << low) - 1)
    _sort_places(order, bits)
    rest = packed[order]
    rest >>= low
    if int(entity.max(initial=0)).bit_length() + above + bits > 63:
        _sort_places(rest, bits)
        order, above = order[rest], 0
        rest.fill(0)
    for part in _parts(rest):
        rest[part] |= entity[order[part]].astype(np.int64) << above
    _sort_places(rest, bits)
    return order[rest]


def _sort_places(numbers: Array, bits: int) -> None:
    """Make of numbers the places of the least of them, of the next and so on."""
    numbers <<= bits
    for part in _parts(numbers):
        numbers[part] |= np.arange(part.start, part.stop)
    numbers.sort()
    numbers &= (1 << bits) - 1


def _parts(numbers: Array) -> Iterator[slice]:
    """Parts that stay in the processor's caches."""
    for start in range(0, len(numbers), OUT):
        yield slice(start, min(start + OUT, len(numbers)))


class Rows(NamedTuple):
    """For each point the place of a row, where there is one."""

    place: Array
    there: Array


class Answers(NamedTuple):
    """For each point the row that answers, the one that would by the other rule of `known_by` where `differ`, and
    whether either has a twin."""

    chosen: Rows
    would: Rows
    differ: Array
    twin: Array


def _found(rows: Sorted, entities: Sequence[pa.Array], search: Search) -> Iterator[pa.RecordBatch]:
    points = np.flatnonzero(rows.tag == search.point)
    columns: list[tuple[Array, Array]] = []
    for group, ttl in enumerate(search.ttls):
        found = answers(rows, points, np.flatnonzero(rows.tag == tag_of(group)), ttl, search)
        flags = [(found.differ, found.differ), (found.twin, found.twin)]  # null where false: it costs next to nothing
        columns += [*_clocks(rows, found.chosen), *_clocks(rows, found.would), *flags]
    for start in range(0, len(points), OUT):
        part = slice(start, start + OUT)
        entity = pa.array(rows.entity[points[part]])
        arrays = [pa.array(rows.other(points[part])), *(key.take(entity) for key in entities)]
        arrays += [pa.array(values[part], mask=~here[part]) for values, here in columns]
        yield pa.RecordBatch.from_arrays(arrays, names=list(search.names))


def answers(rows: Sorted, points: Array, places: Array, ttl: int | None, search: Search) -> Answers:
    """What the rows at these places answer to the points."""
    time = rows.time[points]
    newest = _last(rows, points, places)
    known = _known(rows, points, places, newest, search)
    oldest = None if ttl is None else time - ttl
    newest, known = (_alive(rows, found, oldest) for found in (newest, known))
    differ = (newest.there != known.there) | (newest.there & (newest.place != known.place))
    chosen, would = (known, newest) if search.known_by_spine else (newest, known)
    would = Rows(would.place, would.there & differ)
    twin = np.zeros(len(points), bool)
    if rows.twins is not None:
        for found in (chosen, would):
            twin |= found.there & rows.twins[found.place]
    return Answers(chosen, would, differ, twin)


def _clocks(rows: Sorted, found: Rows) -> Sequence[tuple[Array, Array]]:
    created = rows.other(found.place)
    return [(rows.time[found.place], found.there), (created, found.there & (created != LEAST))]


def _last(rows: Sorted, points: Array, places: Array) -> Rows:
    """The last of the places before each point, where it is of the point's entity."""
    if not len(places):
        return Rows(np.zeros(len(points), np.int64), np.zeros(len(points), bool))
    last = np.searchsorted(places, points) - 1
    place = places[np.maximum(last, 0)]
    return Rows(place, (last >= 0) & (rows.entity[place] == rows.entity[points]))


def _known(rows: Sorted, points: Array, places: Array, newest: Rows, search: Search) -> Rows:
    """The greatest row by (event_time, created_time) of those created by the point's time.

    Only where the newest was created later: there the entity's rows are gone through in the order in which they became
    known, with the greatest so far. Places are in the order of greatness.
    """
    time = rows.time[points]
    late = newest.there & (rows.other(newest.place) > time)
    if not late.any():
        return newest
    of_late = np.zeros(int(rows.entity[-1]) + 1, bool)
    of_late[rows.entity[points[late]]] = True
    some, asking = places[of_late[rows.entity[places]]], points[late]
    arrival = np.maximum(rows.time[some] + (1 if search.strict else 0), rows.other(some))
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
    return Rows(place, there)


def _alive(rows: Sorted, found: Rows, oldest: Array | None) -> Rows:
    if oldest is None:
        return found
    return Rows(found.place, found.there & (rows.time[found.place] >= oldest))
