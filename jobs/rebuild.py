"""A training set made again from its manifest: equal rows, or an error that says what is different or gone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from connectors.manifests import Manifest
from connectors.offline_tables import delta_table
from connectors.readable import any_version, what_is_gone
from connectors.spark_errors import data_errors
from feature_defs.errors import DataError, TidemarkError, UsageError
from feature_defs.splits import parse_splits
from jobs.datasets import manifest_of
from jobs.place import Place
from jobs.recorded import OPTIONS, recorded_service, refuse_other_spine, refuse_what_is_gone, rules_of
from jobs.spines import Spine, SpineWords, open_spine
from jobs.training_set import TrainingSetReport, training_set
from jobs.transforms.row_hash import hash_of


def rebuild(place: Place, path: str, *, out: str, out_format: str = "parquet") -> TrainingSetReport:
    """The rows of a training set, or of a manifest, once more at `out`, made of the same versions of everything.

    What can be looked at is looked at before the join runs: definitions, tables, the spine.
    """
    manifest = manifest_of(place, path)
    _refuse_what_cannot_be_replayed(manifest, path)
    kept = manifest.spine
    words = SpineWords(kept.format, kept.keys, kept.event_time, kept.labels, allow_future=True, version=kept.version)
    splits = [f"{part['name']}={part['start'] or ''}..{part['end'] or ''}" for part in manifest.splits]
    with any_version(place.spark):
        snapshot, service = recorded_service(place, manifest)
        refuse_what_is_gone(place, manifest, snapshot)
        _check_spine(
            place,
            manifest,
            lambda: open_spine(
                place, kept.path, service, snapshot.definitions, words=words, parts=parse_splits(splits)
            ),
        )
        return training_set(
            place,
            kept.path,
            service=manifest.service,
            out=out,
            out_format=out_format,
            spine_format=kept.format,
            keys=kept.keys,
            event_time=kept.event_time,
            labels=kept.labels,
            allow_future=True,
            splits=splits,
            prefix=bool(manifest.options["prefix"]),
            rules=rules_of(manifest.options),
            exactly=manifest,
        )


def _refuse_what_cannot_be_replayed(manifest: Manifest, path: str) -> None:
    subject = f"Training set '{path}'"
    if not manifest.spine.path:
        problem = "its spine was a DataFrame, of which nothing but the hash was kept"
        raise UsageError(subject, problem, hint="write the spine to a lake and build the training set from its path")
    if manifest.hash is None or manifest.spine.hash is None:
        problem = "its run was killed before it counted the rows: there is nothing to hold a replay against"
        raise DataError(subject, problem, hint="write the training set again")
    unknown, missing = manifest.options.keys() - set(OPTIONS), set(OPTIONS) - manifest.options.keys()
    if unknown or missing:
        problem = f"its options differ from those this Tidemark knows: {', '.join(sorted(unknown | missing))}"
        raise DataError(subject, problem, hint="use the Tidemark that wrote it")


def _check_spine(place: Place, manifest: Manifest, opened: Callable[[], Spine]) -> None:
    """One scan of the spine before the join, which may run for an hour."""
    kept = manifest.spine
    subject, at = f"Training set of run {manifest.run}", f" @{kept.version}" if kept.version is not None else ""
    uri = place.lakes.uri(kept.path)
    if kept.version is not None:
        table = delta_table(place.spark, uri)
        if gone := what_is_gone(place.spark, table, kept.version):
            raise DataError(subject, f"its spine {kept.path}{at} {gone}", hint="restore the spine")
    try:
        spine = opened()
    except TidemarkError as error:
        problem = f"its spine {kept.path}{at} cannot be read as it was: {error.problem}"
        raise DataError(subject, problem, hint="restore the spine") from error
    rows = spine.restored(spine.rows, ())
    missing = [name for name in manifest.spine_columns if name not in rows.columns]
    if missing:
        problem = f"its spine {kept.path}{at} has changed: it has no column '{missing[0]}' any more"
        raise DataError(subject, problem, hint="restore the spine")
    with data_errors(f"Spine '{kept.path}'"):
        found = hash_of(rows, manifest.spine_columns)
    refuse_other_spine(manifest, replace(kept, hash=found))
