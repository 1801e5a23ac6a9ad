"""A profile file -> Settings, once: parsed into frozen dataclasses, environment overrides applied, secrets only named.

    conf/NAME.toml + TIDEMARK_* -> load_settings -> Settings

Relative paths in a profile start at the profile's own folder, in a variable at the working directory.
`TIDEMARK_ONLINE_URL=...` overrides `[online] url`, `TIDEMARK_LAKES_RAW=...` the lake `raw`, and so on for every key; an
unknown name is refused in both places.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints
from urllib.parse import parse_qs, urlsplit

from connectors.lakes import PATTERN
from feature_defs.errors import UsageError, listed, near_miss

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ENVIRONMENT = "TIDEMARK_"
PROFILE_VARIABLE = "TIDEMARK_PROFILE"
DEFAULT_PROFILE = "local"
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_PATHS = (("", "definitions"), ("online", "folder"), ("spark", "log_config"))
_SCALARS = (str, bool, float, int)
ONLINE_KINDS = ("embedded", "redis", "none")
MAIN_STORE = "online"  # the name of the store of [online]
ADLS_NEEDS = {"key": ("secret",), "sas": ("secret",), "principal": ("tenant", "client", "secret"), "identity": ()}


@dataclass(frozen=True)
class OnlineSettings:
    """The online store. `password` only names a secret: `env:NAME` or `scope:SCOPE/KEY`."""

    kind: str = "embedded"
    url: str = ""
    folder: str = ""
    username: str = ""
    password: str = ""
    key_prefix: str = "tm"
    timeout_seconds: float = 5.0
    generations: bool = False  # whether a whole new set of keys can be put in place at once: docs/generations.md


@dataclass(frozen=True)
class ParallelSettings:
    """A database's table read in `partitions` parts, cut between `lower` and `upper` of a column of whole numbers."""

    column: str
    lower: int
    upper: int
    partitions: int


@dataclass(frozen=True)
class DatabaseSettings:
    """A JDBC database. `password` only names a secret, as that of the online store; `jars` are the driver's Maven
    coordinates; `parallel` maps tables to how they are read in parts."""

    url: str
    driver: str = ""
    user: str = ""
    password: str = ""
    jars: str = ""
    fetch_size: int = 0
    parallel: Mapping[str, ParallelSettings] = field(default_factory=dict)


@dataclass(frozen=True)
class HdfsSettings:
    """An HDFS, by the host or the nameservice in its URIs. Several addresses, separated by commas, are an HA pair.

    `webhdfs` are the NameNodes' HTTP addresses; `namenodes` their RPC ones, which Spark needs of a pair. `kerberos`
    takes the ticket of the process. `timeout_seconds`: how long a cluster that does not answer is tried.
    """

    webhdfs: str
    namenodes: str = ""
    user: str = ""
    kerberos: bool = False
    timeout_seconds: float = 60.0


@dataclass(frozen=True)
class AdlsSettings:
    """An ADLS Gen2 account and how to sign in: by its key, a SAS, an Entra principal or the machine's own identity.

    `secret` only names one: the key, the SAS, or the principal's. `client` is a principal, or an identity that is not
    the machine's only one. `endpoint` is where the account is, if not where its URIs say.
    """

    auth: str = "identity"
    secret: str = ""
    tenant: str = ""
    client: str = ""
    endpoint: str = ""
    timeout_seconds: float = 60.0


@dataclass(frozen=True)
class SparkSettings:
    """How a session starts. Empty `master` and `remote` take what is there (Databricks, spark-submit --master).

    `jars` false: the cluster brings Delta. `log_config` is a log4j2 file for the driver.
    """

    master: str = ""
    remote: str = ""
    jars: bool = True
    log_config: str = ""
    conf: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Settings:
    """A place: where its lakes and databases are, where definitions are read from, what is online, how Spark starts.

    Applications here read `online`; `online_stores` are others that are loaded in the same run. `offline` is the lake
    path that offline tables are below, or the `catalog.schema` that they are tables of; `offline_files` the lake path
    for what is no table of rows (pins, receipts, ...), without it `offline`. `tables` are the groups whose tables are
    elsewhere: a lake path, a `catalog.schema`, or a `catalog.schema.table`, to which the version is added.
    """

    name: str
    definitions: str
    lakes: Mapping[str, str]
    registry: str = "lake://features/_registry"
    offline: str = "lake://features"
    offline_files: str = ""
    tables: Mapping[str, str] = field(default_factory=dict)
    online: OnlineSettings = field(default_factory=OnlineSettings)
    online_stores: Mapping[str, OnlineSettings] = field(default_factory=dict)
    spark: SparkSettings = field(default_factory=SparkSettings)
    databases: Mapping[str, DatabaseSettings] = field(default_factory=dict)
    hdfs: Mapping[str, HdfsSettings] = field(default_factory=dict)
    adls: Mapping[str, AdlsSettings] = field(default_factory=dict)
    file: str = ""

    @property
    def beside(self) -> str:
        """The lake path for what is beside offline tables."""
        return self.offline_files or self.offline


def is_in_catalog(address: str) -> bool:
    """Whether an offline table is addressed by its name in a catalog, not by a lake path."""
    return "://" not in address


def load_settings(profile: str | None = None, environment: Mapping[str, str] | None = None) -> Settings:
    """The settings of a profile, given by path or as the NAME of conf/NAME.toml here."""
    environment = os.environ if environment is None else environment
    path = _profile_path(profile or environment.get(PROFILE_VARIABLE) or DEFAULT_PROFILE)
    subject = f"Profile '{path.name}'"
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(subject, f"is not TOML: {error}", hint=f"correct {path}") from error
    merged = _overridden(document, environment)
    settings: Settings = _parsed(Settings, merged, subject, "")
    return _located(settings, path)


def _profile_path(profile: str) -> Path:
    named = Path("conf", f"{profile}.toml")
    path = Path(profile) if profile.endswith(".toml") else named
    if not path.is_file():
        there = sorted(found.stem for found in Path("conf").glob("*.toml"))
        hint = near_miss(profile, there) + "name a file with --profile PATH.toml, or run where conf/ is"
        raise UsageError(f"Profile '{profile}'", f"there is no file {path} (profiles here: {listed(there)})", hint=hint)
    return path.resolve()


def _parsed(kind: type, values: Mapping[str, Any], subject: str, where: str) -> Any:
    """A table of the file as its dataclass; every key must be known and of its type."""
    known = {item.name: item for item in fields(kind) if item.name != "file"}
    hints = get_type_hints(kind)
    for key in values:
        if key not in known:
            hint = near_miss(key, known) + f"known: {listed(known)}"
            raise UsageError(subject, f"key '{where}{key}' is not known", hint=hint)
    found: dict[str, Any] = {}
    for name, item in known.items():
        if name in values:
            found[name] = _value(hints[name], values[name], subject, f"{where}{name}")
        elif item.default is MISSING and item.default_factory is MISSING:
            raise UsageError(subject, f"key '{where}{name}' is missing", hint=f"add {name} = ... to the profile")
    return kind(**found)


def _value(kind: Any, value: Any, subject: str, where: str) -> Any:
    if is_dataclass(kind) and isinstance(kind, type) and isinstance(value, Mapping):
        return _parsed(kind, value, subject, f"{where}.")
    if kind is bool and isinstance(value, bool):
        return value
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if kind is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if kind is str and isinstance(value, str):
        return value
    of = get_args(kind)[-1] if get_origin(kind) is Mapping else None
    if is_dataclass(of) and isinstance(value, Mapping):
        return {name: _value(of, inner, subject, f"{where}.{name}") for name, inner in value.items()}
    if kind == Mapping[str, str] and isinstance(value, Mapping):
        wrong = [key for key, inner in value.items() if not isinstance(inner, str)]
        if not wrong:
            return dict(value)
        where, kind, value = f"{where}.{wrong[0]}", str, value[wrong[0]]
    expected = {bool: "true or false", float: "a number", int: "a whole number", str: "text"}.get(kind)
    expected = expected or (
        "a table of texts" if kind == Mapping[str, str] or not (of or is_dataclass(kind)) else "a table"
    )
    raise UsageError(subject, f"key '{where}' is {type(value).__name__}, expected {expected}", hint="correct its value")


# environment overrides


def _overridden(document: Mapping[str, Any], environment: Mapping[str, str]) -> dict[str, Any]:
    merged: dict[str, Any] = {key: dict(value) if isinstance(value, dict) else value for key, value in document.items()}
    scalars = _scalar_keys()
    others = []
    for variable, text in sorted(environment.items()):
        if not variable.startswith(ENVIRONMENT) or variable == PROFILE_VARIABLE:
            continue
        name = variable.removeprefix(ENVIRONMENT).lower()
        if name.startswith("lakes_"):
            table, key, value = "lakes", name.removeprefix("lakes_"), _from_here(text)
        elif name.startswith("tables_"):
            table, key, value = "tables", name.removeprefix("tables_"), text
        elif found := _named_key(name):
            table, item, key, kind = found
            of_name = merged.setdefault(table, {})
            table_of = of_name.setdefault(item, {}) if isinstance(of_name, dict) else None
            if isinstance(table_of, dict):
                value = _from_here(text) if ("online", key) in _PATHS else _from_text(kind, text, variable)
                of_name[item] = {**table_of, key: value}
            continue
        elif name in scalars:
            table, key, kind = scalars[name]
            value = _from_here(text) if (table, key) in _PATHS else _from_text(kind, text, variable)
        else:
            others.append(variable)
            continue
        target = merged.setdefault(table, {}) if table else merged
        if isinstance(target, dict):  # else the profile's own fault, told when it is parsed
            target[key] = value
    for variable in others:  # after all keys are known: one of them may name this variable as its secret
        if not _is_named_secret(variable, merged):
            known = [ENVIRONMENT + key.upper() for key in scalars]
            hint = near_miss(variable, known) + "unset it, or use TIDEMARK_TABLE_KEY as the profile's keys are named"
            raise UsageError(f"Environment variable {variable}", "names no key of a profile", hint=hint)
    return merged


_NAMED = {  # tables of named tables
    "databases": DatabaseSettings,
    "online_stores": OnlineSettings,
    "hdfs": HdfsSettings,
    "adls": AdlsSettings,
}


def _named_key(variable: str) -> tuple[str, str, str, Any] | None:
    """`databases_shop_fetch_size` -> ("databases", "shop", "fetch_size", int)."""
    for table, of in _NAMED.items():
        for key, kind in get_type_hints(of).items():
            item = variable.removeprefix(f"{table}_").removesuffix(f"_{key}")
            if kind in _SCALARS and variable == f"{table}_{item}_{key}":
                return table, item, key, kind
    return None


def _from_here(text: str) -> str:
    """A path in a variable starts at the working directory, as every path in a shell does."""
    return text if _SCHEME.match(text) else str(Path(text).resolve())


def _is_named_secret(variable: str, merged: Mapping[str, Any]) -> bool:
    named = [found for table in _NAMED if isinstance(found := merged.get(table), Mapping)]
    tables = [merged.get("online", {}), *(item for found in named for item in found.values())]
    told = [table.get(key) for table in tables if isinstance(table, Mapping) for key in ("password", "secret")]
    return f"env:{variable}" in told


def _scalar_keys() -> dict[str, tuple[str, str, Any]]:
    found: dict[str, tuple[str, str, Any]] = {}
    for table, kind in (("", Settings), ("online", OnlineSettings), ("spark", SparkSettings)):
        for name, hint in get_type_hints(kind).items():
            if hint in _SCALARS and name != "file":
                found[f"{table}_{name}".lstrip("_")] = (table, name, hint)
    return found


def _from_text(kind: Any, text: str, variable: str) -> Any:
    try:
        if kind in (float, int):
            return kind(text)
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
    except (ValueError, KeyError) as error:
        expected = {float: "a number", int: "a whole number"}.get(kind, "true or false")
        raise UsageError(
            f"Environment variable {variable}", f"expected {expected}", hint="correct its value"
        ) from error
    return text


# paths and rules between keys


def _located(settings: Settings, path: Path) -> Settings:
    subject = f"Profile '{path.name}'"
    spark = settings.spark
    _check_online(settings.online, "online", subject)
    for name, store in settings.online_stores.items():
        if name == MAIN_STORE:
            hint = "call it what it is, as in [online_stores.cloud]"
            raise UsageError(subject, f"online_stores.{name} has the name of the store of [online]", hint=hint)
        _check_online(store, f"online_stores.{name}", subject)
    _check_offline(settings, subject)
    for name, database in settings.databases.items():
        _check_database(database, f"databases.{name}", subject)
    for name, hdfs in settings.hdfs.items():
        _check_hdfs(hdfs, f"hdfs.{name}", subject)
    for name, adls in settings.adls.items():
        _check_adls(adls, f"adls.{name}", subject)
    folder = path.parent
    lakes = {name: _lake_uri(folder, base) for name, base in settings.lakes.items()}
    for name, uri in lakes.items():
        if found := PATTERN.search(uri):
            problem = f"lakes.{name} is {uri}, and Spark takes '{found[0]}' in a path for a pattern"
            raise UsageError(subject, problem, hint="give the lake a folder without any of { } [ ] * ? \\ in its path")
    return Settings(
        name=settings.name,
        definitions=str((folder / settings.definitions).resolve()),
        lakes=lakes,
        registry=settings.registry,
        offline=settings.offline,
        offline_files=settings.offline_files,
        tables=settings.tables,
        online=_located_online(settings.online, folder),
        online_stores={name: _located_online(store, folder) for name, store in settings.online_stores.items()},
        spark=replace(spark, log_config=str((folder / spark.log_config).resolve()) if spark.log_config else ""),
        databases=settings.databases,
        hdfs=settings.hdfs,
        adls=settings.adls,
        file=str(path),
    )


_CATALOG_NAME = r"[^\s.`/:]+"


def _check_offline(settings: Settings, subject: str) -> None:
    if is_in_catalog(settings.offline):
        if not re.fullmatch(rf"{_CATALOG_NAME}\.{_CATALOG_NAME}", settings.offline):
            problem = f"offline '{settings.offline}' is neither a lake path nor CATALOG.SCHEMA"
            raise UsageError(subject, problem, hint='offline = "lake://features" or "main.features"')
        if not settings.offline_files:
            problem = f"offline is the schema {settings.offline} of a catalog, and offline_files is missing"
            hint = 'offline_files = "lake://features": what is no table of rows (pins, receipts, ...) is kept there'
            raise UsageError(subject, problem, hint=hint)
    if settings.offline_files and is_in_catalog(settings.offline_files):
        problem = f"offline_files '{settings.offline_files}' is not a lake path"
        raise UsageError(subject, problem, hint='offline_files = "lake://features"')
    named: dict[str, str] = {}
    for group, address in settings.tables.items():
        if is_in_catalog(address) and not re.fullmatch(rf"{_CATALOG_NAME}(\.{_CATALOG_NAME}){{1,2}}", address):
            problem = f"tables.{group} '{address}' is not a lake path, nor CATALOG.SCHEMA or CATALOG.SCHEMA.TABLE"
            raise UsageError(subject, problem, hint=f'{group} = "lake://NAME/path" or "main.features"')
        other = named.setdefault(address, group) if address.count(".") == 2 and is_in_catalog(address) else group
        if other != group:
            problem = f"tables.{group} and tables.{other} are one table, {address}"
            raise UsageError(subject, problem, hint="name another one, or only its schema")


def _check_online(online: OnlineSettings, where: str, subject: str) -> None:
    if online.kind not in ONLINE_KINDS:
        hint = near_miss(online.kind, ONLINE_KINDS) + f"use one of {', '.join(ONLINE_KINDS)}"
        raise UsageError(subject, f"{where}.kind '{online.kind}' is not known", hint=hint)
    if online.kind == "redis" and not online.url:
        hint = 'url = "redis://host:6379/0"'
        raise UsageError(subject, f"{where}.kind is redis, but {where}.url is missing", hint=hint)
    if online.kind == "embedded" and not online.folder:
        hint = 'folder = "../.tidemark/redis"'
        raise UsageError(subject, f"{where}.kind is embedded, but {where}.folder is missing", hint=hint)
    if not online.key_prefix or {":", "~"} & set(online.key_prefix):
        problem = f"{where}.key_prefix is '{online.key_prefix}', expected a word without ':' and '~'"
        raise UsageError(subject, problem, hint='key_prefix = "tm"')
    if _holds_password(online.url, where, subject):
        hint = 'take it out of the url and set password = "env:NAME" or "scope:SCOPE/KEY"'
        raise UsageError(subject, f"{where}.url holds a password; secrets are never in a profile", hint=hint)
    if online.password and not online.password.startswith(("env:", "scope:")):
        hint = 'set password = "env:NAME" (an environment variable) or "scope:SCOPE/KEY" (a Databricks secret scope)'
        raise UsageError(subject, f"{where}.password is a literal; secrets are never in a profile", hint=hint)


def _located_online(online: OnlineSettings, folder: Path) -> OnlineSettings:
    return replace(online, folder=str((folder / online.folder).resolve()) if online.folder else "")


_COORDINATE = re.compile(r"[\w.-]+:[\w.-]+:[\w.-]+")
# ?password=, ;trustStorePassword=, //user:password@ and oracle's thin:user/password@
_URL_PASSWORD = re.compile(
    r"[?&;:(,]\w*(password|pwd)\s*=|://[^/?;@]*:[^?;@]*@|oracle:\w+:[^/@]+/[^@]*@", re.IGNORECASE
)


def _check_database(database: DatabaseSettings, where: str, subject: str) -> None:
    if not re.match(r"jdbc:[A-Za-z][A-Za-z0-9]*:", database.url):
        raise UsageError(subject, f"{where}.url is not a JDBC URL", hint='url = "jdbc:postgresql://host:5432/name"')
    if _URL_PASSWORD.search(database.url):
        hint = 'take it out of the url and set password = "env:NAME" or "scope:SCOPE/KEY"'
        raise UsageError(subject, f"{where}.url holds a password; secrets are never in a profile", hint=hint)
    if database.password and not database.password.startswith(("env:", "scope:")):
        hint = 'set password = "env:NAME" (an environment variable) or "scope:SCOPE/KEY" (a Databricks secret scope)'
        raise UsageError(subject, f"{where}.password is a literal; secrets are never in a profile", hint=hint)
    for coordinate in coordinates(database.jars):
        if not _COORDINATE.fullmatch(coordinate):
            hint = 'jars = "org.postgresql:postgresql:42.7.7"; a jar file goes into [spark.conf] "spark.jars"'
            raise UsageError(subject, f"{where}.jars '{coordinate}' is not GROUP:ARTIFACT:VERSION", hint=hint)
    if database.fetch_size < 0:
        raise UsageError(
            subject, f"{where}.fetch_size is {database.fetch_size}, expected rows", hint="fetch_size = 10000"
        )
    for table, parts in database.parallel.items():
        if parts.partitions < 1 or parts.lower >= parts.upper:
            problem = f"{where}.parallel.{table}: expected lower < upper and at least one partition"
            hint = 'column = "order_id", lower = 1, upper = 1000000, partitions = 8'
            raise UsageError(subject, problem, hint=hint)


def _check_hdfs(hdfs: HdfsSettings, where: str, subject: str) -> None:
    for url in listed_in(hdfs.webhdfs) or [""]:
        if not re.fullmatch(r"https?://[^/@?\s]+/?", url):
            hint = 'webhdfs = "http://namenode:9870", of a pair "http://nn1:9870, http://nn2:9870"'
            found = "holds more than addresses" if "@" in url else f"'{url}' is not the HTTP address of a NameNode"
            raise UsageError(subject, f"{where}.webhdfs {found}", hint=hint)
    for address in listed_in(hdfs.namenodes):
        if not re.fullmatch(r"[^/@:\s]+:\d+", address):
            hint = 'namenodes = "nn1:8020, nn2:8020"'
            raise UsageError(subject, f"{where}.namenodes '{address}' is not HOST:PORT", hint=hint)


def _check_adls(adls: AdlsSettings, where: str, subject: str) -> None:
    if adls.auth not in ADLS_NEEDS:
        hint = near_miss(adls.auth, ADLS_NEEDS) + f"use one of {', '.join(ADLS_NEEDS)}"
        raise UsageError(subject, f"{where}.auth '{adls.auth}' is not known", hint=hint)
    for key in ADLS_NEEDS[adls.auth]:
        if not getattr(adls, key):
            hint = f"auth {adls.auth} needs {', '.join(ADLS_NEEDS[adls.auth])}"
            raise UsageError(subject, f"{where}.{key} is missing", hint=hint)
    if adls.secret and not adls.secret.startswith(("env:", "scope:")):
        hint = 'set secret = "env:NAME" (an environment variable) or "scope:SCOPE/KEY" (a Databricks secret scope)'
        raise UsageError(subject, f"{where}.secret is a literal; secrets are never in a profile", hint=hint)
    if adls.endpoint and not re.fullmatch(r"https?://[^@?\s]+", adls.endpoint):  # nor a SAS behind it
        hint = 'endpoint = "https://ACCOUNT.dfs.core.windows.net", with nothing behind it'
        raise UsageError(subject, f"{where}.endpoint is not an address", hint=hint)


def listed_in(text: str) -> list[str]:
    """The parts of a text, which are separated by commas."""
    return [found for part in text.split(",") if (found := part.strip())]


def coordinates(jars: str) -> list[str]:
    """Maven coordinates of a text, separated by commas."""
    return listed_in(jars)


def _holds_password(url: str, where: str, subject: str) -> bool:
    try:
        parts = urlsplit(url)
    except ValueError as error:  # its message may repeat what the url holds
        raise UsageError(subject, f"{where}.url is not a URL", hint='url = "redis://host:6379/0"') from error
    return bool(parts.password) or "password" in parse_qs(parts.query)


def _lake_uri(folder: Path, base: str) -> str:
    """A lake's base as a URI (never escaped, as Spark has it); without a scheme it is a folder from the profile's."""
    if _SCHEME.match(base):
        return base.rstrip("/")
    return f"file://{(folder / base).resolve()}"
