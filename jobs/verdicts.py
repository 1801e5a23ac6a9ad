"""What an online value is, held against the offline row that it should have been made of.

    packed offline rows, stored values -> judged -> a verdict per entity, and the features that differ

Equal bytes are told by one Arrow kernel and all that a header says by numpy; only values of the same time with other
bytes, and newer ones, are decoded. A verdict says what a load would do about it:

    same          the same bytes
    expired       past its ttl offline, and online past it or gone: nobody can read it
    newer         of a later event_time, not after now: another writer is ahead of the offline table
    missing       there is an offline row within its ttl and nothing online
    stale         of an earlier event_time or an older definition
    differs       of the same event_time with other values
    unreadable    no reader can decode it
    ahead         of a definition above the one in force, or a time that has not come: every load would leave it alone
    surplus       online without an offline row

From `missing` on they are faults.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from connectors import codec

SAME, EXPIRED, NEWER = "same", "expired", "newer"
MISSING, STALE, DIFFERS, UNREADABLE, AHEAD, SURPLUS = "missing", "stale", "differs", "unreadable", "ahead", "surplus"
FAULTS = (MISSING, STALE, DIFFERS, UNREADABLE, AHEAD, SURPLUS)
VERDICTS = (SAME, EXPIRED, NEWER, *FAULTS)
# Clocks of a writer and of this machine differ by so much at most.
CLOCK_MARGIN_US = 60_000_000

_CODE = {verdict: code for code, verdict in enumerate(VERDICTS)}
NO_TIME = np.iinfo(np.int64).min
GONE = len(VERDICTS)  # no verdict: it expired or was deleted while it was looked at
_HEADER = np.dtype([("version", "u1"), ("schema", "<u4"), ("definition", "<u4"), ("event_time", "<i8")])
assert _HEADER.itemsize == codec.HEADER.size


@dataclass(frozen=True)
class Terms:
    """What a group's values are held against. Plain data, so that a Spark executor has them."""

    schema: codec.ValueSchema
    definition: int
    ttl_us: int | None
    now_us: int


@dataclass(frozen=True)
class Judged:
    """A code of VERDICTS per value (or GONE), its event_time or NO_TIME, and which features differ, by row."""

    codes: npt.NDArray[np.int8]
    online_times: npt.NDArray[np.int64]
    features: Mapping[int, tuple[str, ...]]

    def rows(self, verdict: str) -> npt.NDArray[np.intp]:
        return np.flatnonzero(self.codes == _CODE[verdict])


def judged(offline: pa.Array, online: pa.Array, terms: Terms, *, clock_us: int) -> Judged:
    """The verdict on each entity: its packed offline row and the stored value or null, both in one order."""
    times = codec.event_times(offline)
    dead = _past_ttl(times, terms, terms.now_us)
    there = _mask(online.is_valid())
    equal = _mask(pc.equal(offline.cast(pa.large_binary()), online.cast(pa.large_binary())).fill_null(False))
    # Redis expires by the clock, whatever `now` the audit is asked for.
    gone = _past_ttl(times, terms, max(terms.now_us, clock_us))
    codes = np.full(len(offline), _CODE[SAME], np.int8)
    codes[~there] = np.where(gone, _CODE[EXPIRED], _CODE[MISSING])[~there]
    codes[equal & dead] = _CODE[EXPIRED]
    online_times = np.where(equal, times, NO_TIME)
    features: dict[int, tuple[str, ...]] = {}
    other = np.flatnonzero(there & ~equal)
    if len(other):
        stored = online.take(pa.array(other))
        heads, whole = _headers(stored)
        known = _by_header(heads, whole, terms, clock_us)
        known[(known < 0) & (heads["event_time"] < times[other])] = _CODE[STALE]
        known[_expired(heads, whole, terms) & dead[other]] = _CODE[EXPIRED]
        # What is left is of this definition and not older than the offline row: only its values tell.
        for at in np.flatnonzero(known < 0):
            row = int(other[at])
            later = heads["event_time"][at] > times[row]
            known[at], names = _by_values(offline[row].as_py(), stored[at].as_py(), terms, later=bool(later))
            if names:
                features[row] = names
        codes[other] = known
        online_times[other] = np.where(whole, heads["event_time"], NO_TIME)
    return Judged(codes, online_times, features)


def judged_alone(online: pa.Array, terms: Terms, *, clock_us: int) -> Judged:
    """The verdict on stored values of entities that have no offline row at `now`."""
    there = _mask(online.is_valid())
    codes = np.full(len(online), GONE, np.int8)
    online_times = np.full(len(online), NO_TIME, np.int64)
    if there.any():
        heads, whole = _headers(online.filter(pa.array(there)))
        known = np.full(len(heads), _CODE[SURPLUS], np.int8)
        # A row of after `now` is none of this audit, and what another writer made of it isn't either.
        after = (heads["event_time"] > terms.now_us) & (_by_header(heads, whole, terms, clock_us) < 0)
        known[after] = _CODE[NEWER]
        known[_expired(heads, whole, terms)] = _CODE[EXPIRED]
        codes[there], online_times[there] = known, np.where(whole, heads["event_time"], NO_TIME)
    return Judged(codes, online_times, {})


def _by_header(
    heads: npt.NDArray[Any], whole: npt.NDArray[np.bool_], terms: Terms, clock_us: int
) -> npt.NDArray[np.int8]:
    """What the first bytes of each value decide, -1 where they do not."""
    known = np.full(len(heads), -1, np.int8)
    known[heads["event_time"] > max(terms.now_us, clock_us + CLOCK_MARGIN_US)] = _CODE[AHEAD]
    known[heads["schema"] != terms.schema.fingerprint] = _CODE[UNREADABLE]
    # A value of another definition may well have other features, and keeps its place whatever it holds.
    known[heads["definition"] < terms.definition] = _CODE[STALE]
    known[heads["definition"] > terms.definition] = _CODE[AHEAD]
    known[~whole] = _CODE[UNREADABLE]
    return known


def _by_values(offline: bytes, stored: bytes, terms: Terms, *, later: bool) -> tuple[int, tuple[str, ...]]:
    try:
        found = codec.decode(stored, terms.schema).values
    except codec.CodecError:
        return _CODE[UNREADABLE], ()
    if later:
        return _CODE[NEWER], ()
    names = different(terms.schema.names, codec.decode(offline, terms.schema).values, found)
    return (_CODE[DIFFERS], names) if names else (_CODE[SAME], ())


def different(names: Sequence[str], left: Sequence[Any], right: Sequence[Any]) -> tuple[str, ...]:
    """The names of values that differ: 0.0 and -0.0 do, a NaN and another do not."""
    pairs = zip(names, left, right, strict=True)
    return tuple(name for name, one, other in pairs if one is not other and repr(one) != repr(other))


def _headers(values: pa.Array) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
    """The header of each value, zeros for one that has none of this codec, and whether it has one."""
    heads = pc.binary_slice(values.cast(pa.large_binary()), 0, _HEADER.itemsize).to_pylist()
    whole = np.array([len(head) == _HEADER.itemsize and head[0] == codec.CODEC_VERSION for head in heads], np.bool_)
    nothing = bytes(_HEADER.itemsize)
    packed = b"".join(head if sound else nothing for head, sound in zip(heads, whole, strict=True))
    return np.frombuffer(packed, _HEADER), whole


def _expired(heads: npt.NDArray[Any], whole: npt.NDArray[np.bool_], terms: Terms) -> npt.NDArray[np.bool_]:
    return np.asarray(whole & _past_ttl(heads["event_time"], terms, terms.now_us))


def _past_ttl(times: npt.NDArray[np.int64], terms: Terms, at_us: int) -> npt.NDArray[np.bool_]:
    if terms.ttl_us is None:
        return np.zeros(len(times), np.bool_)
    return np.asarray(times < at_us - terms.ttl_us)


def _mask(flags: pa.Array) -> npt.NDArray[np.bool_]:
    return np.asarray(flags.to_numpy(zero_copy_only=False), np.bool_)
