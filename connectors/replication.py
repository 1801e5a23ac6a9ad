"""A table in another lake, version for version: first a plan, then files in the order that readers need.

    list the replica, then the source -> refuse what does not fit -> Plan
    Plan -> a version's new files (in parallel) -> its commit, created exclusively -> the next version -> checkpoints

A version is visible in the replica when its commit is there, and its files were there before. What is written has its
final name and content at once, so a run that was killed is gone on from, and two at once do the same work. Nobody else
writes to a replica: its versions are the source's, by their very bytes.

After the commits come files that only make reading faster: checkpoints, checksums of versions, and `_last_checkpoint`,
the one file that is replaced.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from urllib.parse import unquote

from connectors.copying import Copier, Sent, gone
from connectors.delta_files import change_files_of, data_files_of, refuse_catalog
from connectors.delta_log import (
    LOG,
    Action,
    checkpoint_actions,
    commit_actions,
    file_key,
    sidecars,
    whole_checkpoints,
)
from connectors.file_store import FileStore
from connectors.lakes import joined
from feature_defs.errors import LakeError

_COMMIT = re.compile(r"(\d{20})\.json")
_CHECKSUM = re.compile(r"(\d{20})\.crc")
_MANIFEST = re.compile(r"(\d{8})\.json")
_LAST = "_last_checkpoint"
_MANIFESTS = "_tidemark"
_BLOCK = 64  # commits in memory at once
_READERS = 8  # small files read at once
_READ_AGAIN = 20  # commits of both sides that are read; the rest is compared by size. A commit names the ones before it
_AHEAD = 4  # how many files a thread may be ahead of the version that waits to be committed
_CONFLICT = (
    "the replica has a history of its own: remove it ({uri}) and run this again, or keep it and replicate elsewhere"
)


@dataclass(frozen=True)
class End:
    """One end of a replication: a folder and the store that has it."""

    files: FileStore
    uri: str

    def at(self, path: str) -> str:
        return joined(self.uri, path)

    def below(self, folder: str) -> End:
        return End(self.files, joined(self.uri, folder))

    def sizes(self, path: str = "") -> dict[str, int]:
        """Every file of a folder in it, with its bytes."""
        uri = self.at(path) if path else self.uri
        return {file.path: file.size for file in self.files.list_files(uri)}


@dataclass(frozen=True)
class Version:
    """A version that the replica lacks: the files it needs with their bytes, then what makes it visible, in order."""

    number: int
    data: Mapping[str, int]
    commits: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """What one table or folder needs. `there` are files that a run before has brought, `unreadable` the versions of
    which the source itself has lost files, `feedless` those of which it has lost change data; `after` comes last, with
    what `_last_checkpoint` is to hold."""

    name: str
    source: End
    target: End
    versions: tuple[Version, ...] = ()
    newest: int | None = None
    there: frozenset[str] = frozenset()
    after: tuple[str, ...] = ()
    last: bytes | None = None
    unreadable: tuple[int, ...] = ()
    feedless: tuple[int, ...] = ()

    @property
    def is_done(self) -> bool:
        return not (self.versions or self.after or self.last)

    @property
    def data(self) -> dict[str, int]:
        return {path: size for version in self.versions for path, size in version.data.items()}


@dataclass
class Progress:
    """What was done so far; told while it goes on."""

    files: int = 0
    bytes: int = 0
    there: int = 0
    versions: int = 0
    of_files: int = 0
    of_bytes: int = 0

    def add(self, sent: Sent) -> None:
        self.files += not sent.was_there
        self.there += sent.was_there
        self.bytes += sent.bytes

    def told(self) -> str:
        done = f"{self.files + self.there:,} of {self.of_files:,} files"
        return f"{done}, {self.bytes / 1e6:,.0f} of {self.of_bytes / 1e6:,.0f} MB, {self.versions:,} versions"


# a Delta table


@dataclass(frozen=True)
class _Log:
    """What lies in a `_delta_log`: sizes by name, commits by version, whole checkpoints by version."""

    sizes: Mapping[str, int]
    commits: Mapping[int, str] = field(default_factory=dict)
    checkpoints: Mapping[int, Sequence[tuple[str, ...]]] = field(default_factory=dict)

    @property
    def newest(self) -> int | None:
        return max([*self.commits, *self.checkpoints], default=None)

    @property
    def oldest(self) -> int:
        return min([*self.commits, *self.checkpoints])

    def unbroken_since(self, newest: int) -> int:
        """The first commit of those that reach the newest one without a gap; behind it when even that is missing."""
        first = newest + 1
        while first - 1 in self.commits:
            first -= 1
        return first


def plan_delta(name: str, source: End, target: End, *, allow_vacuumed: bool = False) -> Plan:
    """What the replica of a Delta table lacks. LakeError when its history is another, or when the source has lost
    files of a version that the replica lacks, unless that is allowed."""
    subject = f"Table '{name}'"
    held, log = _log(target), _log(source)  # in this order: a run beside this one only adds what the source has
    newest, has = log.newest, held.newest
    if newest is None:
        raise LakeError(subject, f"is not in the source: {source.uri}", hint="compute it there first")
    first = log.unbroken_since(newest)
    begin = 0 if first == 0 else min((number for number in log.checkpoints if number >= first - 1), default=None)
    if begin is None or (has is not None and has + 1 < first):
        lost = f"commits before {first} were cleaned up"
        if begin is None:
            raise LakeError(subject, f"{lost}, and no checkpoint stands for them", hint="restore the source's log")
        problem = f"{lost}, and the replica ends with version {has}"
        hint = f"remove the replica ({target.uri}) and run this again; replicate more often than the log is cleaned up"
        raise LakeError(subject, problem, hint=hint)
    if has is not None:
        _refuse_other_history(subject, source, target, log, held)
    planned = Plan(name, source, target, newest=newest)
    if has is None:
        lacking = _lacking(source, log, begin, by_checkpoint=first > 0)
    else:
        lacking = _lacking(source, log, has + 1, by_checkpoint=False)
    if has is None or has < newest:
        planned = _with_versions(planned, lacking, allow_vacuumed=allow_vacuumed)
    since = begin if has is None else held.oldest
    brought = {name for version in planned.versions for name in version.commits}
    after = [name for name in _after(source, log, held, since) if name not in brought]
    return replace(planned, after=tuple(after), last=_last_checkpoint(source, target, log, since))


def _log(end: End) -> _Log:
    sizes = end.sizes(LOG)
    commits = {int(found[1]): name for name in sizes if (found := _COMMIT.fullmatch(name))}
    return _Log(sizes, commits, whole_checkpoints(sizes))


def _refuse_other_history(subject: str, source: End, target: End, log: _Log, held: _Log) -> None:
    has, newest = held.newest or 0, log.newest or 0
    hint = _CONFLICT.format(uri=target.uri)
    if has > newest:
        raise LakeError(subject, f"the replica has version {has}, the source ends with {newest}", hint=hint)
    shared = [name for name in [*log.commits.values(), *_parts(log)] if name in held.sizes]
    if not shared:
        problem = f"the replica ends with version {has}, and nothing of its log is in the source's"
        raise LakeError(subject, problem, hint=hint)
    commits = sorted(name for name in shared if _COMMIT.fullmatch(name)) or shared
    refuse_differences(
        subject, source.below(LOG), target.below(LOG), commits, log.sizes, held.sizes, what="version", hint=hint
    )


def _parts(log: _Log) -> list[str]:
    return [part for checkpoints in log.checkpoints.values() for parts in checkpoints for part in parts]


def refuse_differences(
    subject: str,
    source: End,
    target: End,
    shared: Sequence[str],
    sizes: Mapping[str, int],
    held: Mapping[str, int],
    *,
    what: str,
    hint: str,
    read: int | None = _READ_AGAIN,
) -> None:
    """LakeError when a file of both ends has other bytes: all by their size, the last ones (None: all) by reading."""
    with ThreadPoolExecutor(_READERS) as pool:
        last = shared if read is None else shared[-read:]
        alike = dict(zip(last, pool.map(lambda name: _read(source, name) == _read(target, name), last), strict=True))
    other = next((name for name in shared if sizes[name] != held[name] or not alike.get(name, True)), None)
    if other is not None:
        named = int(stem) if (stem := other.partition(".")[0]).isdigit() else other
        raise LakeError(subject, f"{what} {named} of the replica is not the source's", hint=hint)


def _read(end: End, path: str) -> bytes:
    try:
        return end.files.read(end.at(path))
    except FileNotFoundError as error:
        raise gone(end.at(path)) from error


def _with_versions(plan: Plan, lacking: Iterable[_Lacking], *, allow_vacuumed: bool) -> Plan:
    """The versions that the replica lacks, each with the files that it is the first to need."""
    subject = f"Table '{plan.name}'"
    there, sizes = plan.target.sizes(), plan.source.sizes()
    seen: set[str] = set()
    lost: dict[tuple[str, str], list[str]] = {}  # of the files that are live: those that the source has not any more
    versions, unreadable, feedless = [], [], []
    for number, commits, actions in lacking:
        data: dict[str, int] = {}
        before: set[str] = set()  # files that were live: they are brought, and only their deletion vector is new
        for action in sorted(actions, key=lambda action: "remove" not in action):
            refuse_catalog(action, subject)
            if remove := action.get("remove"):
                lost.pop(file_key(remove), None)
                before |= {unquote(remove["path"])} & there.keys()
            needed, change = list(data_files_of(action, subject)), list(change_files_of(action, subject))
            missing = [
                path
                for path, said in (*needed, *change)
                if path not in sizes and (path not in there or said not in (None, there[path]))
            ]
            if missing and needed:
                lost[file_key(action["add"])] = missing
            elif missing:
                feedless.append(number)
            for path, said in (*needed, *change):
                if path in seen or path in before or path not in sizes:
                    continue
                if said not in (None, sizes[path]):
                    problem = f"its file {path} has {sizes[path]:,} bytes, version {number} says {said:,}"
                    raise LakeError(subject, problem, hint="restore that file in the source; the replica is unchanged")
                seen.add(path)
                data[path] = sizes[path]
        if lost:
            unreadable.append(number)
        versions.append(Version(number, data, commits))
    feedless = sorted(set(feedless))
    if lost:
        count = len({path for paths in lost.values() for path in paths})
        problem = f"its newest version {plan.newest} has lost {count:,} of its files in the source"
        raise LakeError(subject, problem, hint="restore them, or RESTORE the table to a version that can be read")
    if (unreadable or feedless) and not allow_vacuumed:
        raise _vacuumed(subject, [version.number for version in versions], unreadable, feedless)
    named = {path for version in versions for path in version.data}
    return replace(
        plan,
        versions=tuple(versions),
        there=frozenset(named & there.keys()),
        unreadable=tuple(unreadable),
        feedless=tuple(feedless),
    )


_Lacking = tuple[int, tuple[str, ...], Iterable[Action]]


def _lacking(source: End, log: _Log, start: int, *, by_checkpoint: bool) -> Iterator[_Lacking]:
    """Each version from `start` on: its number, what makes it visible, its actions. A log that was cleaned up begins
    with a checkpoint."""
    if by_checkpoint:
        parts = log.checkpoints[start][0]
        own = [log.commits[start]] if start in log.commits else []
        # A checkpoint knows nothing of change data.
        changes = (action for action in (_commit_actions(source, start) if own else ()) if "cdc" in action)
        actions = chain(checkpoint_actions(source.files, source.uri, parts), changes)
        yield start, _in_log([*_with_sidecars(source, parts), *own]), actions
        start += 1
    with ThreadPoolExecutor(_READERS) as pool:
        numbers = range(start, (log.newest or 0) + 1)
        for block in (numbers[i : i + _BLOCK] for i in range(0, len(numbers), _BLOCK)):
            read = pool.map(partial(_commit_actions, source), block)
            yield from ((n, _in_log([log.commits[n]]), actions) for n, actions in zip(block, read, strict=True))


def _commit_actions(source: End, number: int) -> list[Action]:
    try:
        return list(commit_actions(source.files, source.uri, number))
    except FileNotFoundError as error:
        raise gone(source.at(joined(LOG, f"{number:020d}.json"))) from error


def _vacuumed(subject: str, all_of: Sequence[int], unreadable: Sequence[int], feedless: Sequence[int]) -> LakeError:
    readable = [number for number in all_of if number not in set(unreadable)]
    problems = []
    if unreadable:
        problems.append(f"{_spans(unreadable)} cannot be read in the source any more, their files were vacuumed")
        problems.append(f"{_spans(readable)} can")
    if feedless:
        problems.append(f"the change data of {_spans(feedless)} was vacuumed")
    hint = "--allow-vacuumed copies all that is left, and such versions stay as unreadable as in the source"
    return LakeError(subject, "; ".join(problems), hint=hint)


def _spans(numbers: Sequence[int]) -> str:
    """`version 4`, `versions 0 to 3, 7`."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and spans[-1][1] == number - 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    told = ", ".join(str(one) if one == other else f"{one} to {other}" for one, other in spans)
    return f"version{'' if len(numbers) == 1 else 's'} {told}"


def _after(source: End, log: _Log, held: _Log, since: int) -> tuple[str, ...]:
    """Checksums of versions, then checkpoints that the replica lacks, sidecars before them; and the commit of the one
    that the replica begins with, if a run was killed between the two."""
    wanted = sorted(name for name in log.sizes if (found := _CHECKSUM.fullmatch(name)) and int(found[1]) >= since)
    wanted += [log.commits[since]] if since in log.commits else []
    for version, checkpoints in sorted(log.checkpoints.items()):
        for parts in checkpoints if version >= since else ():
            if not set(parts) <= held.sizes.keys():
                wanted += _with_sidecars(source, parts)
    return _in_log(name for name in wanted if name not in held.sizes)


def _with_sidecars(source: End, parts: Sequence[str]) -> list[str]:
    return [*(side for name in parts for side in sidecars(source.files, source.uri, name)), *parts]


def _in_log(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(joined(LOG, name) for name in names)


def _last_checkpoint(source: End, target: End, log: _Log, since: int) -> bytes | None:
    """What `_last_checkpoint` is to hold, where the replica's is another; it may name only what the replica has."""
    if _LAST not in log.sizes:
        return None
    wanted = _read(source, joined(LOG, _LAST))
    with suppress(ValueError, KeyError, TypeError):  # half a file: it may be replaced at any time
        if int(json.loads(wanted)["version"]) in {n for n in log.checkpoints if n >= since}:
            with suppress(FileNotFoundError):
                if target.files.read(target.at(joined(LOG, _LAST))) == wanted:
                    return None
            return wanted
    return None


# a Parquet table


def plan_parquet(name: str, source: End, target: End, *, allow_vacuumed: bool = False) -> Plan:
    """What the replica of a table with manifests lacks. Versions that maintenance removed are no versions any more."""
    subject = f"Table '{name}'"
    held, manifests = target.sizes(_MANIFESTS), source.sizes(_MANIFESTS)
    numbers = {int(found[1]): file for file in manifests if (found := _MANIFEST.fullmatch(file))}
    has = max((int(found[1]) for file in held if (found := _MANIFEST.fullmatch(file))), default=0)
    newest = max(numbers, default=0)
    hint = _CONFLICT.format(uri=target.uri)
    if has > newest:
        raise LakeError(subject, f"the replica has version {has}, the source ends with {newest}", hint=hint)
    ends = (source.below(_MANIFESTS), target.below(_MANIFESTS))
    refuse_differences(
        subject, *ends, sorted(manifests.keys() & held.keys()), manifests, held, what="version", hint=hint
    )
    wanted = sorted(number for number in numbers if number > has)
    planned = Plan(name, source, target, newest=newest or None)
    if not wanted:
        return planned
    there, sizes = target.sizes(), source.sizes()
    versions: list[Version] = []
    unreadable: list[int] = []
    seen: set[str] = set()
    for number in wanted:
        manifest = json.loads(_read(ends[0], numbers[number]))
        paths = [file["path"] for file in manifest["files"]]
        for file in manifest["files"]:
            if (size := sizes.get(file["path"], file["bytes"])) != file["bytes"]:
                problem = f"its file {file['path']} has {size:,} bytes, version {number} says {file['bytes']:,}"
                raise LakeError(subject, problem, hint="restore that file in the source; the replica is unchanged")
        if any(path not in sizes and path not in there for path in paths):
            unreadable.append(number)
            continue
        new = {path: sizes[path] for path in paths if path in sizes and path not in seen}
        seen |= new.keys()
        versions.append(Version(number, new, (joined(_MANIFESTS, numbers[number]),)))
    if newest in unreadable:
        problem = f"its newest version {newest} has lost files in the source"
        raise LakeError(subject, problem, hint="restore them, or compute the group again with --full")
    if unreadable and not allow_vacuumed:
        raise _vacuumed(subject, wanted, unreadable, ())
    return replace(
        planned, versions=tuple(versions), there=frozenset(seen & there.keys()), unreadable=tuple(unreadable)
    )


# a folder of small files, each created once


def plan_files(
    name: str,
    source: End,
    target: End,
    wanted: Callable[[str], bool],
    *,
    read: int | None = _READ_AGAIN,
    what: str = "file",
    hint: str = "",
) -> Plan:
    """The files of a folder that the other end lacks, by name; LakeError when one that both have is another there."""
    held, sizes = target.sizes(), source.sizes()
    names = sorted(path for path in sizes if wanted(path))
    shared = [path for path in names if path in held]
    hint = hint or f"the two places wrote their own: remove those of one of them ({target.uri}), then run this again"
    refuse_differences(name, source, target, shared, sizes, held, what=what, hint=hint, read=read)
    return Plan(name, source, target, after=tuple(path for path in names if path not in held))


# doing it


def carry_out(plan: Plan, copier: Copier, *, parallel: int, progress: Progress) -> None:
    """Bring all that is planned. Files are ahead of their versions, versions are made in order."""
    queue: deque[Callable[[], None]] = deque()
    pool = ThreadPoolExecutor(parallel)
    try:
        for version in plan.versions:
            for path, size in version.data.items():
                uris = plan.source.at(path), plan.target.at(path)
                sent = pool.submit(copier.copy, *uris, size, is_there=path in plan.there)
                queue.append(partial(_arrived, sent, progress))
                _work_off(queue, parallel * _AHEAD)
            queue.append(partial(_commit, plan, copier, version, progress))
        _work_off(queue, 0)
        checksums = [path for path in plan.after if path.endswith(".crc")]  # one a version
        list(pool.map(partial(_create, plan, copier), checksums))
        for path in plan.after[len(checksums) :]:  # in their order: a checkpoint names its sidecars
            _create(plan, copier, path)
    except BaseException:  # Ctrl-C too
        copier.stopped.set()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
    if plan.last is not None:
        uri = plan.target.at(joined(LOG, _LAST))
        plan.target.files.delete(uri)  # readers list the log while it is not there
        with suppress(FileExistsError):
            plan.target.files.create(uri, plan.last)


def _work_off(queue: deque[Callable[[], None]], left: int) -> None:
    while len(queue) > left:
        queue.popleft()()


def _arrived(sent: Future[Sent], progress: Progress) -> None:
    progress.add(sent.result())


def _commit(plan: Plan, copier: Copier, version: Version, progress: Progress) -> None:
    for path in version.commits:
        _create(plan, copier, path)
    progress.versions += 1


def _create(plan: Plan, copier: Copier, path: str) -> None:
    """A file of a log, which is there with the same bytes if another run was faster."""
    uri = plan.target.at(path)
    if path.endswith(".parquet"):  # a checkpoint may be large
        copier.copy(plan.source.at(path), uri)
        return
    content = _read(plan.source, path)
    try:
        plan.target.files.create(uri, content)
    except FileExistsError as error:
        if plan.target.files.read(uri) != content:
            problem = f"{path} was written in the replica meanwhile, and is not the source's"
            raise LakeError(f"Table '{plan.name}'", problem, hint=_CONFLICT.format(uri=plan.target.uri)) from error
