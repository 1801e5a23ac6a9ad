"""What fills a place in a test: definitions, rows of a source, and what came out."""

from __future__ import annotations

import dataclasses
import datetime
import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pyspark.sql import DataFrame

from connectors.file_store import local_path, open_file_store
from feature_defs.checks import check
from feature_defs.model import Definition, Definitions
from jobs.place import Place

Table = Callable[..., DataFrame]
NOW = datetime.datetime(2026, 2, 1, tzinfo=datetime.timezone.utc)


def checked(*objects: Definition) -> Definitions:
    definitions, faults = check(objects)
    assert definitions is not None, "\n".join(map(str, faults))
    return definitions


def register(place: Place, *objects: Definition) -> int:
    """Put definitions in force, as `apply` would, without definition files."""
    told = {"applied_at": "2026-01-01T00:00:00+00:00", "applied_by": "test", "message": ""}
    numbers = place.registry.numbers()
    return place.registry.commit(checked(*objects), after=numbers[-1] if numbers else 0, **told)


def write_definitions(place: Place, text: str) -> None:
    Path(place.settings.definitions, "features.py").write_text(text, encoding="utf-8")


def write_profile(place: Place, name: str) -> str:
    """A profile file for a place, beside its definitions."""
    lakes = "".join(f'{lake} = "{uri}"\n' for lake, uri in place.settings.lakes.items())
    text = f'name = "{name}"\ndefinitions = "definitions"\n[lakes]\n{lakes}[online]\nkind = "none"\n'
    path = Path(place.settings.definitions).with_name(f"{name}.toml")
    path.write_text(text, encoding="utf-8")
    return str(path)


def put(place: Place, rows: DataFrame, path: str, file_format: str = "parquet") -> None:
    """Make these rows all that a lake path holds."""
    writer = rows.coalesce(1).write.mode("overwrite")
    writer.option("overwriteSchema", "true").format(file_format).save(place.lakes.uri(path))


def put_text(place: Place, text: str, path: str) -> None:
    """One text file below a lake path."""
    file = local_path(place.lakes.uri(path)) / "part-0"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


def files_in(place: Place, lake: str) -> list[str]:
    """Every file of a lake, but those that hold checksums."""
    found = open_file_store("file:///").list_files(place.lakes.uri(f"lake://{lake}"))
    return [file.path for file in found if not file.path.endswith(".crc")]


def folders_in(place: Place, lake: str) -> list[str]:
    root = local_path(place.lakes.uri(f"lake://{lake}"))
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_dir())


def read_json(place: Place, path: str) -> Any:
    return json.loads(local_path(place.lakes.uri(path)).read_text(encoding="utf-8"))


def in_catalog(place: Place) -> Place:
    """The same place with its offline tables in a schema of the session's catalog, whose folder no lake knows."""
    folder = Path(place.settings.definitions).with_name("managed")
    name = f"spark_catalog.t{uuid.uuid4().hex[:8]}"
    place.spark.sql(f"CREATE SCHEMA {name} LOCATION '{folder}'")
    return Place(dataclasses.replace(place.settings, offline=name, offline_files="lake://features"))


def of_kind(place: Place, kind: str) -> tuple[Place, str]:
    """A place for tables that are `delta`, `parquet` or, in Delta, of a `catalog`; and the format in a definition."""
    return (in_catalog(place), "delta") if kind == "catalog" else (place, kind)
