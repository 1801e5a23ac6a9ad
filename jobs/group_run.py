"""One group in one run of compute: all of its table, what was added to its source, a span of time, or nothing.

    the table's note (definition, source then, complete to)  +  the source now  ->  Work  ->  rows  ->  a new version

The note is in the same commit as the rows, so every row of the source counts once, however often a run is repeated,
killed, or run twice at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from connectors.file_store import check_writable, open_file_store
from connectors.offline_tables import Note, OfflineTable, Span, others_than
from connectors.registry import Snapshot
from connectors.source_changes import Added, State, added_since
from feature_defs import durations
from feature_defs.errors import DataError, UsageError
from feature_defs.expressions import may_change_by_itself
from feature_defs.fitting import reads_other_rows
from feature_defs.model import CREATED_TIME, EVENT_TIME, REJECTED, Aggregate, Entity, FeatureGroup, Source
from feature_defs.rules import Rule, Unique
from feature_defs.window_functions import refuse_window_functions
from jobs.fitting import Cleaned, clean, refuse_when_nothing_is_left, waits_for_fit
from jobs.inputs import applied_function, source_rows, state_of
from jobs.place import Place, time_of
from jobs.quality import (
    FEATURE,
    SOURCE,
    Written,
    keep_results,
    quarantine,
    quarantine_in_force,
    stops_told,
    together,
    write_by_tasks,
    write_checked,
)
from jobs.report import step
from jobs.rule_results import ended, results_uri
from jobs.transforms.expectations import checked, rules_digest, rules_of
from jobs.transforms.features import changed_rows, feature_rows, features_of, grid_end, reach, without_past
from jobs.transforms.rows import after, all_quoted, prepared, reasons

MOST_GRID_POINTS = 1_000_000  # a century of hours; one stray row of the year 1 must not become millions of rows
FIRST_RUN, AS_ASKED = "its first run", "as asked"
FULL, ADDED, BACKFILL, NOTHING = "full", "added", "backfill", "nothing new"


@dataclass(frozen=True)
class ComputedGroup:
    """One group's result. `table_version` is the offline table's, `version` the group's; `how` is full or added, `why`
    says what made it full, `rows` are those that were written. `reasons` are those for which rows of the source were
    rejected, the most frequent first, `quarantine` is where rejected rows are."""

    group: str
    version: int
    how: str
    why: str
    table_version: int
    rows: int
    rejected: int
    seconds: float
    extra_columns: tuple[str, ...]
    empty_columns: tuple[str, ...]
    future_rows: int
    broken_rules: dict[str, int]
    dropped: dict[str, int] = field(default_factory=dict)
    fitted: tuple[str, ...] = ()
    reasons: dict[str, int] = field(default_factory=dict)
    quarantine: str = ""


# what there is to do


@dataclass(frozen=True)
class Work:
    """`why` says why all is computed. `added` are the source's new files, `complete` is what the table holds now."""

    how: str
    why: str = ""
    added: Added | None = None
    version: int | None = None
    complete: _Complete | None = None


def _whole(place: Place, snapshot: Snapshot, group: FeatureGroup) -> str:
    """Why a group's rows cannot be made of new rows alone, or nothing."""
    if group.transform is not None:
        return "its transform may read any row"
    if reads_other_rows(group):
        return "its cleaning reads an entity's earlier rows"
    if any(map(may_change_by_itself, _conditions(snapshot, group))):
        return "which rows count depends on the clock"
    if any(isinstance(rule, Unique) and rule.severity != "warn" for rule in group.rules):
        return "a rule of uniqueness reads all rows"
    if waits_for_fit(place, snapshot, group):
        return "what it fits is not fitted yet"
    return ""


def _conditions(snapshot: Snapshot, group: FeatureGroup) -> Iterator[str]:
    """What says which rows of the source count."""
    aggregates = [feature.expression for feature in group.aggregates]
    filters = [snapshot.definitions.source_of(group).filter]
    return filter(None, [*filters, *(one.where for one in aggregates if isinstance(one, Aggregate))])


# doing it


@dataclass(frozen=True)
class Backfill:
    """Event times in (start, end] to compute anew from the source, a chunk a commit; microseconds UTC."""

    start_us: int
    end_us: int
    chunk_us: int

    def as_plain(self) -> dict[str, int]:
        return {"start": self.start_us, "end": self.end_us, "chunk": self.chunk_us}


@dataclass(frozen=True)
class Options:
    """What a user may ask of a run: all of it, a span anew, features that the table lacks null in its past rows."""

    full: bool = False
    backfill: Backfill | None = None
    leave_null: bool = False


def compute_group(
    place: Place,
    snapshot: Snapshot,
    group: FeatureGroup,
    run: str,
    *,
    now: int,
    options: Options,
) -> ComputedGroup:
    """Bring a group's offline table up to its source."""
    refuse_window_functions(group)
    source = snapshot.definitions.source_of(group)
    state = state_of(place, snapshot, source)
    fingerprint = snapshot.fingerprint(group.name)
    note = {"run": run, "verb": "compute", "group": group.name, "fingerprint": fingerprint, "snapshot": snapshot.number}
    note["rules"] = rules_digest(group)
    job = _Job(place, snapshot, group, place.table(group), note, state, now, time.monotonic(), options)
    if options.backfill is not None:
        return _backfilled(job, options.backfill)
    work = planned(job, whole=AS_ASKED if options.full else _whole(place, snapshot, group))
    steps = {FULL: _compute_all, ADDED: _add, NOTHING: _Job.unchanged}
    return steps[work.how](job, work)


@dataclass(frozen=True)
class _Job:
    """One group in one run: what every step of it needs. `note` says who wrote, `_Complete` what of."""

    place: Place
    snapshot: Snapshot
    group: FeatureGroup
    table: OfflineTable
    note: dict[str, Any]
    state: State
    now: int
    started: float
    options: Options

    @property
    def source(self) -> Source:
        return self.snapshot.definitions.source_of(self.group)

    @property
    def entity(self) -> Entity:
        return self.snapshot.definitions.entity_of(self.group)

    @property
    def rules(self) -> tuple[Rule, ...]:
        return rules_of(self.group)

    def rows(self, added: Added | None = None) -> tuple[DataFrame, tuple[str, ...]]:
        """The source's rows with clocks and reasons for rejection, and the columns that its schema lacks."""
        raw = source_rows(self.place, self.snapshot, self.source, state=self.state, added=added)
        transform = None if self.group.transform is None else applied_function(self.place, self.group)
        return prepared(raw.rows, self.source, self.entity, transform), raw.extra_columns

    def clean(self, good: DataFrame) -> Cleaned:
        return clean(self.place, self.snapshot, self.group, good, run=self.note["run"], now=self.now)

    def write(self, features: DataFrame, note: Note, commit: Callable[[DataFrame], int]) -> Written:
        return write_checked(self.place, self.group, features, note, now_us=self.now, commit=commit)

    def unchanged(self, work: Work) -> ComputedGroup:
        return self.computed(work, Written(work.version or 0, 0, 0, ()))

    def said(self, how: str, complete: _Complete) -> dict[str, Any]:
        """The note of a commit."""
        return {**self.note, "how": how, "source": self.state, **complete.as_plain()}

    def computed(
        self,
        work: Work,
        written: Written,
        *,
        told: _Inspected | None = None,
        extra: tuple[str, ...] = (),
        cleaned: Cleaned | None = None,
    ) -> ComputedGroup:
        rejected = written.rejected + (told.bad if told else 0)
        return ComputedGroup(
            group=self.group.name,
            version=self.group.version,
            how=work.how,
            why=work.why,
            table_version=written.version,
            rows=written.rows,
            rejected=rejected,
            seconds=round(time.monotonic() - self.started, 3),
            extra_columns=extra,
            empty_columns=told.empty_columns if told else (),
            future_rows=told.future if told else 0,
            broken_rules=written.broken_rules,
            dropped=cleaned.dropped if cleaned else {},
            fitted=cleaned.fitted if cleaned else (),
            reasons=told.reasons if told else {},
            quarantine=self.place.quarantine_uri(self.group) if rejected else "",
        )


@dataclass(frozen=True)
class _Complete:
    """What a table holds of its source, microseconds UTC: the rest of its note.

    `until_us` is the last grid point, `oldest_us` and `newest_us` are the source's rows so far, but those after now.
    `pending` says that rows wait for their time to come, `short_us` where a backfill ended before the source did,
    `begin_us` where one began. Features in `null_until` are null up to a time: they were added without their past.
    """

    until_us: int
    oldest_us: int
    newest_us: int
    pending: bool
    begin_us: int | None = None
    null_until: Mapping[str, int] | None = None
    short_us: int | None = None
    backfill: Mapping[str, int] | None = None

    def as_plain(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if value is not None}


def _complete_of(note: Mapping[str, Any]) -> _Complete:
    return _Complete(**{name: note[name] for name in _Complete.__dataclass_fields__ if name in note})


def _good(rows: DataFrame) -> DataFrame:
    return rows.where(F.col(REJECTED).isNull()).drop(REJECTED)


def planned(job: _Job, *, whole: str) -> Work:
    """How much is to be computed, told without reading a row. `whole` is a reason why it must be all, or empty."""
    version = job.table.version()
    if version is None:
        return Work(FULL, FIRST_RUN)
    note = job.table.note(version)
    if whole:
        return Work(FULL, whole, version=version)
    if note.get("fingerprint") != job.note["fingerprint"]:
        return Work(FULL, "its definition changed", version=version)
    if "source" not in note:
        return Work(FULL, "its table says nothing of the source", version=version)
    if note.get("rules") != job.note["rules"]:
        return Work(FULL, "its rules changed", version=version)
    if note.get("how") == FULL and not ended(job.place, job.group, note["run"]):
        return Work(FULL, "the run before did not come to its end", version=version)
    uri = job.place.lakes.uri(job.source.path) if job.state["kind"] == "delta" else ""
    added = added_since(note["source"], job.state, uri)
    if added is None:
        return Work(FULL, "its source did not only grow", version=version)
    complete = _complete_of(note)
    waits = complete.short_us is not None or (job.group.every is not None and complete.pending)
    return Work(ADDED if added.names or waits else NOTHING, added=added, version=version, complete=complete)


def _compute_all(job: _Job, work: Work) -> ComputedGroup:
    """The whole table from the whole source."""
    rows, extra = job.rows()
    told = _inspected(rows, job.source, job.entity, job.now)
    if told.read == told.bad:
        raise _no_good_row(job.group, told)
    _check_writable(job, rejected=told.bad)
    complete = replace(_complete_to(job, told), null_until=_null_until(job, work) or None)
    cleaned = job.clean(_good(rows))
    refuse_when_nothing_is_left(job.group, cleaned)
    made = features_of(cleaned.rows, cleaned.group, job.entity, until_us=complete.until_us)
    features, note = checked(without_past(made.rows, complete.null_until), job.rules), job.said(FULL, complete)
    written = None if complete.null_until else write_by_tasks(job.place, job.group, made, note, now_us=job.now)
    if written is None:
        written = job.write(features, note, lambda laid: job.table.replace(laid, note))
    quarantine(job.place, job.group, told.bad + written.rejected, {SOURCE: rows, FEATURE: features}, note)
    keep_results(job.place, job.group, written, note, now_us=job.now, reasons=told.reasons)
    return job.computed(work, written, told=told, extra=extra, cleaned=cleaned)


def _null_until(job: _Job, work: Work) -> dict[str, int]:
    """Features that have no past: those of the table that is there, and when so told those that it lacks."""
    if work.version is None or (work.why == AS_ASKED and not job.options.leave_null):
        return {}
    note = job.table.note(work.version)
    found = dict(note.get("null_until") or {})
    if job.options.leave_null and "newest_us" in note:
        edge = note["until_us"] if job.group.every else note["newest_us"]
        there = job.table.read(work.version).columns
        found |= {feature.name: edge for feature in job.group.features if feature.name not in there}
    return {name: edge for name, edge in found.items() if name in {feature.name for feature in job.group.features}}


def _complete_to(job: _Job, told: _Inspected) -> _Complete:
    oldest = job.now if told.oldest is None else told.oldest  # None: no row is of the past
    newest = job.now if told.newest is None else told.newest
    until = _grid_end(job.group, oldest, newest, job.now) if job.group.every else job.now
    return _Complete(until, oldest, newest, pending=newest > until or told.future > 0)


def _add(job: _Job, work: Work) -> ComputedGroup:
    """What new files of the source add to the table, or change in it."""
    assert work.version is not None
    assert work.complete is not None
    version, before, group = work.version, work.complete, job.group
    job = replace(job, now=max(job.now, before.newest_us, before.until_us))  # a clock that went back takes nothing back
    edge = before.until_us if group.every else before.short_us  # up to where the source was read, if not to its end
    rows, extra = job.rows(work.added)
    good, time = _good(rows), F.unix_micros(EVENT_TIME)
    if before.begin_us is not None:
        good = good.where(after(before.begin_us))
    told = _inspected(rows, job.source, job.entity, job.now)
    newest = before.newest_us if told.newest is None else max(told.newest, before.newest_us)
    oldest = before.oldest_us if told.oldest is None else min(told.oldest, before.oldest_us)
    until, last = job.now, None
    late = before.pending or (told.oldest is not None and told.oldest <= before.newest_us)
    if edge is not None:
        late = (told.oldest is not None and told.oldest <= edge) or (told.future > 0 and job.now < edge)
    waiting = before.pending or before.short_us is not None
    if edge is not None and waiting:  # else nothing but the new files is left
        fresh = _good(job.rows()[0]).where(after(edge))
        passed, last = fresh.agg(F.max(F.when(time <= job.now, time)), F.max(time)).collect()[0]
        newest = newest if passed is None else max(newest, passed)
        good = fresh.unionByName(good.where(~after(edge))) if late else fresh
    if group.every:
        until = max(before.until_us, _grid_end(group, oldest, newest, job.now))
    if not told.read and not late and (until == before.until_us if group.every else last is None):
        return job.unchanged(replace(work, how=NOTHING))
    _check_writable(job, rejected=told.bad)
    complete = replace(
        before,
        until_us=until,
        oldest_us=oldest,
        newest_us=newest,
        pending=(newest if last is None else max(newest, last)) > until
        or told.future > 0
        or (before.pending and not group.every),
        short_us=None,
        backfill=None,
    )
    first = (before.newest_us if edge is None else edge) + 1
    if late:
        first = told.oldest if told.oldest is not None else min(first, job.now + 1)
    cleaned = job.clean(good)
    needed = reach(cleaned.rows, cleaned.group, job.entity, first)
    kept = job.table.read_all(version)
    note = {**job.said(ADDED, complete), "runs": _runs_with_quarantine(job)}
    if before.begin_us is not None and (needed is None or needed <= before.begin_us):
        span = Span(max(first - 1, before.begin_us), max(until, job.now) if group.every else durations.GREATEST_US)
        cleaned = job.clean(_good(job.rows()[0]))
        changed, on = _of_span(job, cleaned, span, until if group.every else span.until_us), _row_columns(job)
        commit = _span_commit(job, span, note, version)
    else:
        changed, on = changed_rows(
            cleaned.rows,
            kept,
            cleaned.group,
            job.entity,
            complete_us=before.until_us,
            until_us=until,
            oldest_us=first,
            late=late,
        )

        def commit(laid: DataFrame) -> int:
            if late:
                return job.table.merge(laid, note, on=on, after=version)
            return job.table.append(laid, note, after=version)

    features = checked(without_past(changed, before.null_until), job.rules)
    if told.bad or _may_quarantine(job):
        # before the table: it counts only when the table's note names this run, and then nothing of it can be lost
        with stops_told(job.place, group, note, now_us=job.now):
            _add_to_quarantine(job, {SOURCE: rows, FEATURE: features}, kept, on, note)
    written = job.write(features, note, commit)
    keep_results(job.place, group, written, note, now_us=job.now, reasons=told.reasons)
    return job.computed(work, written, told=told, extra=extra, cleaned=cleaned)


def _may_quarantine(job: _Job) -> bool:
    return any(rule.severity == "quarantine" for rule in job.rules)


def _row_columns(job: _Job) -> list[str]:
    """What names a row of the table."""
    clocks = [EVENT_TIME] if job.group.aggregates else [EVENT_TIME, CREATED_TIME]
    return [*job.entity.keys, *clocks]


def _runs_with_quarantine(job: _Job) -> list[str]:
    """The earlier run whose quarantine is in force, and stays so unless this one writes another."""
    in_force = quarantine_in_force(job.place, job.group)
    return [] if in_force is None else [str(job.place.quarantine(job.group).note(in_force)["run"])]


def _add_to_quarantine(
    job: _Job, parts: Mapping[str, DataFrame], kept: DataFrame, on: Sequence[str], note: Mapping[str, Any]
) -> None:
    """The quarantine in force with what this run rejects.

    The feature rows in quarantine are those that the table hides, but for those made again.
    """
    in_force = quarantine_in_force(job.place, job.group)
    earlier = None if in_force is None else job.place.quarantine(job.group).read(in_force)
    if REJECTED in kept.columns:
        earlier = None if earlier is None else earlier.where(F.col("stage") == SOURCE)
        still = others_than(kept.where(F.col(REJECTED).isNotNull()), parts[FEATURE], on)
        columns = [name for name in parts[FEATURE].columns if name in still.columns]
        parts = {**parts, FEATURE: parts[FEATURE].select(*columns).unionByName(still.select(*columns))}
    quarantine(job.place, job.group, 1, parts, note, earlier=earlier)


def _of_span(job: _Job, cleaned: Cleaned, span: Span, until: int) -> DataFrame:
    """Feature rows of a span, from all rows of the source."""
    until = min(span.until_us, until)
    return feature_rows(cleaned.rows, cleaned.group, job.entity, until_us=until, after_us=span.after_us)


def _backfilled(job: _Job, asked: Backfill) -> ComputedGroup:
    """(start, end] from the source, chunk by chunk: each is a commit, and a run that stopped goes on from the last.

    A table of another definition, or none, begins anew at `start`. In one that is there the span's rows take the place
    of those that are; they are made of the source as the table has seen it, and a later run adds what came since.
    """
    version = job.table.version()
    known = job.table.note(version) if version is not None else {}
    anew = known.get("fingerprint") != job.note["fingerprint"] or "source" not in known
    if not anew:
        job = replace(job, state=known["source"], note={**job.note, "rules": known.get("rules")})
    rows, extra = job.rows()
    told = _inspected(rows, job.source, job.entity, job.now)
    if told.read == told.bad:
        raise _no_good_row(job.group, told)
    _check_writable(job, rejected=told.bad)
    cleaned = job.clean(_good(rows))
    whole = _complete_to(job, told)
    before = None if anew else _complete_of(known)
    if before is not None:
        _check_touches(job, asked, before)
    limit = whole.until_us if before is None or before.short_us is not None else before.until_us
    done = asked.start_us
    if before is not None and before.backfill and not ended(job.place, job.group, known["run"]):
        done = before.backfill["done"] if asked.as_plain().items() <= before.backfill.items() else done
    note, parts = known, list[Written]()
    if done < asked.end_us and (told.bad or _may_quarantine(job)):
        # before the table, as when rows are added; each chunk's note names this run
        complete = _complete_after(job, asked, Span(done, asked.end_us), before, whole)
        note = {**job.said(BACKFILL, complete), "runs": [] if anew else _runs_with_quarantine(job)}
        made = _of_span(job, cleaned, _all_of(complete), limit if job.group.every else durations.GREATEST_US)
        features = checked(without_past(made, complete.null_until), job.rules)
        with stops_told(job.place, job.group, note, now_us=job.now):
            quarantine(job.place, job.group, 1, {SOURCE: rows, FEATURE: features}, note)
    while done < asked.end_us:
        span = Span(done, min(done + asked.chunk_us, asked.end_us))
        complete = _complete_after(job, asked, span, before, whole)
        note = {**job.said(BACKFILL, complete), "runs": [] if anew else _runs_with_quarantine(job)}
        made = _of_span(job, cleaned, span, limit if job.group.every else span.until_us)
        features = checked(without_past(made, complete.null_until), job.rules)
        with step(f"  {time_of(span.after_us):%Y-%m-%d %H:%M} - {time_of(span.until_us):%Y-%m-%d %H:%M}"):
            parts.append(job.write(features, note, _span_commit(job, span, note, None if anew else version)))
        version, before, anew, done = parts[-1].version, complete, False, span.until_us
    written = together(parts, job.rules, version=version or 0)
    keep_results(job.place, job.group, written, note, now_us=job.now, reasons=told.reasons)
    return job.computed(Work(BACKFILL), written, told=told, extra=extra, cleaned=cleaned)


def _check_touches(job: _Job, asked: Backfill, before: _Complete) -> None:
    """UsageError when a span would leave a hole in a table that holds only part of its source."""
    begin, end = before.begin_us, before.short_us
    if (begin is not None and asked.start_us < begin) or (end is not None and asked.start_us > end):
        held = f"{'all' if begin is None else f'{time_of(begin):%Y-%m-%d %H:%M}'}"
        held += f" to {'now' if end is None else f'{time_of(end):%Y-%m-%d %H:%M}'}"
        problem = f"holds {held}, and --start {time_of(asked.start_us):%Y-%m-%d %H:%M} lies outside"
        hint = "start within what it holds, or compute all of it with --full"
        raise UsageError(f"FeatureGroup '{job.group.name}'", problem, hint=hint)


def _complete_after(job: _Job, asked: Backfill, span: Span, before: _Complete | None, whole: _Complete) -> _Complete:
    """What the table holds when a chunk is in it."""
    progress = {**asked.as_plain(), "done": span.until_us}
    if before is not None and before.short_us is None:  # a span of a table that holds more
        return replace(before, backfill=progress)
    begin: int | None = asked.start_us
    end = span.until_us
    if before is not None:  # a part of its source already
        begin, end = before.begin_us, max(before.short_us or end, end)
    more = end < max(whole.newest_us, whole.until_us) or (whole.pending and not job.group.every)
    short = end if more else None
    until = job.now
    if job.group.every:
        every = durations.microseconds(job.group.every)
        until = min(end - end % every, whole.until_us)
    return replace(whole, until_us=until, begin_us=begin, short_us=short, backfill=progress)


def _all_of(complete: _Complete | None) -> Span:
    """All that a table holds."""
    begin = complete.begin_us if complete else None
    end = complete.short_us if complete else None
    return Span(durations.LEAST_US if begin is None else begin, durations.GREATEST_US if end is None else end)


def _span_commit(job: _Job, span: Span, note: Mapping[str, Any], version: int | None) -> Callable[[DataFrame], int]:
    """Put rows in the place of a version's; of none, make them the table."""
    if version is None:
        return lambda laid: job.table.replace(laid, note)
    return lambda laid: job.table.replace_span(laid, note, span=span, after=version)


@dataclass(frozen=True)
class _Inspected:
    """What one pass over a source's rows tells: all, bad ones, ones after now, the span of the others (None: none), and
    why the bad ones are, the most frequent reason first."""

    read: int
    bad: int
    future: int
    oldest: int | None
    newest: int | None
    empty_columns: tuple[str, ...]
    reasons: dict[str, int]


def _past(now: int) -> Column:
    time = F.unix_micros(EVENT_TIME)
    return F.when(time <= now, time)


def _inspected(rows: DataFrame, source: Source, entity: Entity, now: int) -> _Inspected:
    """Look at the rows before anything is written."""
    good = F.col(REJECTED).isNull()
    past = F.when(good, _past(now))
    # json has no header: a column that was renamed only shows in that nobody has it
    watched = [name for name in source.schema or () if source.format == "json" and name in rows.columns]
    filled = [F.count(F.col(name)).alias(f"filled_{number}") for number, name in enumerate(all_quoted(watched))]
    future = F.count(F.when(good & (F.unix_micros(EVENT_TIME) > now), 1))
    texts = [text for _, text in reasons(entity)]
    why = [F.count(F.when(F.col(REJECTED) == text, 1)).alias(f"why_{number}") for number, text in enumerate(texts)]
    read, bad, later, oldest, newest, *counts = rows.agg(
        F.count("*"), F.count(REJECTED), future, F.min(past), F.max(past), *filled, *why
    ).collect()[0]
    empty = tuple(name for name, count in zip(watched, counts, strict=False) if read and not count)
    found = sorted(zip(texts, counts[len(watched) :], strict=True), key=lambda one: -one[1])
    return _Inspected(read, bad, later, oldest, newest, empty, {text: count for text, count in found if count})


def _no_good_row(group: FeatureGroup, told: _Inspected) -> DataError:
    named = ", ".join(f"{text} ({n:,})" for text, n in told.reasons.items()) or "the source's filter keeps none"
    hint = "look at the source and at the definition's keys, event_time and schema; the offline table is as it was"
    return DataError(f"FeatureGroup '{group.name}'", f"no row of {told.read:,} can be used: {named}", hint=hint)


def _grid_end(group: FeatureGroup, oldest: int, newest: int, now: int) -> int:
    """The last grid point; DataError when an entity would get an absurd number of them from one stray row."""
    every = group.every or ""
    until = grid_end(newest, now, every)
    points = (until - oldest) // durations.microseconds(every)
    if points > MOST_GRID_POINTS:
        problem = (
            f"every={every} from its oldest row, of {time_of(oldest):%Y-%m-%d}, is {points:,} points for one entity"
        )
        hint = "drop stray rows with the source's filter=, or make the grid coarser; nothing was written"
        raise DataError(f"FeatureGroup '{group.name}'", problem, hint=hint)
    return until


def _check_writable(job: _Job, *, rejected: int) -> None:
    """All that is to be written, before any of it is: a job must not end between the two."""
    quarantines = rejected > 0 or _may_quarantine(job)
    tables = [job.table, *([job.place.quarantine(job.group)] if quarantines else [])]
    for table in tables:
        table.check_writable()
    results = results_uri(job.place, job.group)
    check_writable(open_file_store(results), results)
