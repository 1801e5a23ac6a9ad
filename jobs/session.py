"""The Spark session of a place: the one that is there, a Connect session, or a new one with the Delta jars.

The two Delta jars are all that is taken: their declared dependencies would put a second, older Hadoop on the classpath.
Spark's own resolver fetches them once; then the cached files are passed by path, so that a machine with no network
starts, and starts faster.
"""

from __future__ import annotations

import fcntl
import logging
import os
import pwd
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from pyspark.logger import PySparkLogger
from pyspark.sql import SparkSession

from feature_defs.errors import MissingPartError, UsageError
from jobs.lake_access import ABFS_JARS, hadoop_conf, hadoop_user
from jobs.settings import Settings, SparkSettings, coordinates

DELTA_JARS = ("io.delta:delta-spark_4.2_2.13:4.4.0", "io.delta:delta-storage:4.4.0")
# An exclusion holds for all that is asked for in one go, so none of these may match a driver or a user's own package.
_NOT_WITH_THEM = (
    "com.fasterxml.*:*", "com.github.luben:*", "com.google.code.*:*", "com.microsoft.azure:*",
    "io.delta:delta-kernel-*", "io.unitycatalog:*", "org.antlr:*", "org.apache.hadoop:hadoop-client-*",
    "org.apache.httpcomponents:*", "org.apache.logging.*:*", "org.apache.parquet:*", "org.roaringbitmap:*",
    "org.slf4j:*",
)  # fmt: skip
_JOINED = ("spark.jars", "spark.jars.packages", "spark.jars.excludes")  # lists of ours and of the profile
_JAVA_HINT = (
    "install a JDK or JRE 17: `apt-get install openjdk-17-jre-headless`, `dnf install java-17-openjdk-headless`, "
    "`brew install openjdk@17`; or set JAVA_HOME to one"
)
_MEMORY = "spark.driver.memory"
_MEMORY_HINT = f'write a size as {_MEMORY} = "2g" in [spark.conf]'
_MASTER_HINT = "write local[2], local[*] or spark://HOST:7077, in the profile or in TIDEMARK_SPARK_MASTER"

_STARTING = threading.Lock()  # standard output is the process's
# What expressions mean must not depend on the place: hour(t) follows the zone, and a cast that overflows gives null
# where ANSI is off. Set on a session that is there, too.
_ALWAYS = {"spark.sql.session.timeZone": "UTC", "spark.sql.ansi.enabled": "true"}
# Spark asks for a batch's bytes at every row, which takes as long as handing the row to Python does.
# Generated code is compiled again where its text differs, and with a number in its name it does: a training set of four
# groups compiled 83 pieces the first time and 30 in each run after it, without the number 57 and 2.
_FASTER = {
    "spark.sql.execution.arrow.maxBytesPerBatch": str(2**31 - 1),
    "spark.sql.codegen.useIdInClassName": "false",
}
_CODE_KEPT = ("spark.sql.codegen.cache.maxEntries", "1000")  # usually 100, two such runs; only a new session can say it
# Python's tasks work on arrays of some megabytes: memory that is given back after each, and asked for again, took a
# sixth of their time. On a cluster other jobs may want it.
_MEMORY_KEPT = {
    "spark.executorEnv.ARROW_DEFAULT_MEMORY_POOL": "system",  # which does what the next two say
    "spark.executorEnv.MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "spark.executorEnv.MALLOC_TRIM_THRESHOLD_": str(1 << 30),  # past it all is given back
}
# Of a query's settings Spark's pages show all but what matches; the usual pattern lets an account's key through.
_REDACTED, _SECRETS = "spark.sql.redaction.options.regex", r"(?i)url|^fs\.azure\..*(key|secret|token)"
_OF_ACCOUNT = ("fs.azure.account.", "fs.azure.sas.")  # how one account is signed in to
_DELTA = {
    "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
    "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
}


def open_session(settings: Settings, *, app: str = "tidemark") -> SparkSession:
    """The session for these settings; a session that runs already (notebook, Databricks) is used as it is."""
    _silence_query_logs()
    active = SparkSession.getActiveSession()
    if active is not None:
        return _with_lakes(_with_rules(active), settings)
    spark = settings.spark
    if spark.remote:
        builder = SparkSession.builder.remote(spark.remote)
    else:
        check_java()
        if user := hadoop_user(settings):
            os.environ.setdefault("HADOOP_USER_NAME", user)  # read once, when the JVM first asks who it is
        builder = SparkSession.builder.appName(app).config(*_CODE_KEPT)
        if spark.master and not _is_submitted():
            builder = builder.master(spark.master)
        if spark.master.startswith("local"):
            os.environ.setdefault("PYSPARK_PYTHON", sys.executable)  # else the `python3` of the PATH, not this one
            os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")  # else a look-up of this machine's name
        if spark.log_config:
            builder = builder.config("spark.driver.extraJavaOptions", f"-Dlog4j2.configurationFile={spark.log_config}")
    is_here = not spark.remote and spark.master.startswith("local") and not _is_submitted()
    conf = {**(_MEMORY_KEPT if is_here else {}), **_FASTER, **_ALWAYS, **with_jars(settings)}
    for key, value in conf.items():
        builder = builder.config(key, value)
    alone = one_at_a_time() if "spark.jars.packages" in conf else nullcontext()
    with alone, _STARTING, _output_to_stderr(), _start_errors(settings):
        session = builder.getOrCreate()
    return _with_lakes(_with_rules(session), settings)


@contextmanager
def _output_to_stderr() -> Iterator[None]:
    """A process that starts meanwhile prints on standard error: a JVM does, in Delta's VACUUM, and our standard output
    holds the report alone."""
    try:
        kept = os.dup(1)
        os.dup2(2, 1)
    except OSError:  # one of the two is closed
        yield
        return
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


@contextmanager
def _start_errors(settings: Settings) -> Iterator[None]:
    """What Java says of a setting that Spark cannot start with is a UsageError that names it."""
    try:
        yield
    except Exception as error:
        subject, memory = f"Profile '{settings.name}'", settings.spark.conf.get(_MEMORY, "")
        master = f"key 'spark.master' is '{settings.spark.master}'"
        if found := re.search(r"Could not parse Master URL[^\n]*", str(error)):
            raise UsageError(subject, f"{master}: {found[0]}", hint=_MASTER_HINT) from error
        if found := re.search(r"System memory [^\n]*", str(error)):
            problem = f"key 'spark.conf' has {_MEMORY} = {memory or 'the usual'}: {found[0]}"
            raise UsageError(subject, problem, hint=_MEMORY_HINT) from error
        if "JAVA_GATEWAY_EXITED" not in str(error):
            raise
        if memory and (said := _refused_heap(memory)):
            problem = f"key 'spark.conf' has {_MEMORY} = {memory}: {said}"
            raise UsageError(subject, problem, hint=_MEMORY_HINT) from error
        problem = f"Java ended before Spark began, the lines above say why; {master}"
        hint = "correct spark.master, or what [spark.conf] says of the driver"
        raise UsageError(subject, problem, hint=hint) from error


def _refused_heap(memory: str) -> str:
    """What Java says of a heap of this size; empty when it takes it."""
    told = subprocess.run([_java() or "java", f"-Xmx{memory}", "-version"], capture_output=True, text=True, check=False)
    return told.stderr.partition("\n")[0] if told.returncode else ""


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """While jars are fetched: of two processes that Spark's resolver runs in, one fails to move what it fetched."""
    with Path(tempfile.gettempdir(), f"tidemark-jars-{os.getuid()}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until it is closed
        yield


def _with_lakes(session: SparkSession, settings: Settings) -> SparkSession:
    """Addresses and credentials of the lakes, in the session alone: no command line and no page of Spark's has them.
    Serverless compute refuses them, and reaches lakes by its catalog."""
    conf = hadoop_conf(settings)
    if conf:
        conf[_REDACTED] = _SECRETS
    for key, value in {**conf, **_anew(session, conf)}.items():
        with suppress(Exception):
            session.conf.set(key, value)
    return session


def _anew(session: SparkSession, conf: Mapping[str, str]) -> dict[str, str]:
    """Hadoop keeps a file system with the credential that it was opened with, as long as the JVM lives. A session that
    is told another (a new token, in a notebook) opens them anew each time, which costs a request more for each file."""
    with suppress(Exception):
        known = {key: session.conf.get(key, None) for key in conf if key.startswith(_OF_ACCOUNT)}
        if any(known[key] not in (None, conf[key]) for key in known):
            return {f"fs.{scheme}.impl.disable.cache": "true" for scheme in ("abfs", "abfss")}
    return {}


def _with_rules(session: SparkSession) -> SparkSession:
    for key, value in _ALWAYS.items():
        session.conf.set(key, value)
    return session


def _silence_query_logs() -> None:
    """PySpark logs each failed query as JSON on standard error, with the values that it quotes; our message says it."""
    for name in ("SQLQueryContextLogger", "DataFrameQueryContextLogger", "py4j"):
        PySparkLogger.getLogger(name).disabled = True
    logging.getLogger().addFilter(_is_no_interrupt)


def _is_no_interrupt(record: logging.LogRecord) -> bool:
    """py4j logs the traceback of a Ctrl-C, which is raised all the same, and that of PySpark's answer to it: a call of
    Java within a call."""
    cause = record.exc_info[1].__context__ if record.exc_info and record.exc_info[1] else None
    is_nested = isinstance(cause, RuntimeError) and "reentrant call" in str(cause)
    return not (is_nested or record.getMessage().startswith("KeyboardInterrupt while sending command"))


def _is_submitted() -> bool:
    """Under spark-submit the JVM runs already: its command line has chosen master and jars, and wins."""
    return "PYSPARK_GATEWAY_PORT" in os.environ


def with_jars(settings: Settings) -> dict[str, str]:
    """The profile's conf, its lists of jars and packages behind ours."""
    spark = settings.spark
    if spark.remote:
        return dict(spark.conf)
    drivers = [jar for database in settings.databases.values() for jar in coordinates(database.jars)]
    abfs = ABFS_JARS if spark.jars and any(base.startswith("abfs") for base in settings.lakes.values()) else ()
    ours = _jars(spark, [*abfs, *drivers])
    joined = {key: ",".join(filter(None, (ours.get(key), spark.conf.get(key)))) for key in _JOINED}
    return {**ours, **spark.conf, **{key: value for key, value in joined.items() if value}}


def _jars(spark: SparkSettings, drivers: Sequence[str] = ()) -> dict[str, str]:
    """How Delta and drivers reach the classpath: by cached files, else by coordinates; not where a cluster has them.

    Of a driver its own jar is taken from the cache, not what it depends on.
    """
    wanted = [*(DELTA_JARS if spark.jars else ()), *dict.fromkeys(drivers)]
    delta = _DELTA if spark.jars else {}
    if not wanted or _is_submitted():
        return delta
    if cached := cached_jars(wanted):
        return {**delta, "spark.jars": ",".join(map(str, cached))}
    excludes = {"spark.jars.excludes": ",".join(_NOT_WITH_THEM)} if spark.jars else {}
    return {**delta, "spark.jars.packages": ",".join(wanted), **excludes}


def cached_jars(wanted: Sequence[str] = DELTA_JARS) -> list[Path]:
    """These jars in the caches of Spark's resolver (`.ivy2`, since Spark 4 `.ivy2.VERSION`); all or none."""
    names = [f"{coordinate.replace(':', '_', 1).replace(':', '-')}.jar" for coordinate in wanted]
    caches: list[Path] = []
    for home in _homes():
        with suppress(OSError):  # one that may not be looked into
            caches += [cache / "jars" for cache in sorted(home.glob(".ivy2*"), reverse=True)]
    found = [next((cache / name for cache in caches if (cache / name).is_file()), None) for name in names]
    return [] if None in found else [jar for jar in found if jar]


def _homes() -> list[Path]:
    """The user's home, and what Java takes for it: HOME, which a container may set otherwise, is nothing to it."""
    homes = [Path.home()]
    with suppress(KeyError):  # a user that is a number alone
        homes.append(Path(pwd.getpwuid(os.getuid()).pw_dir))
    return list(dict.fromkeys(homes))


def _java() -> str | None:
    home = os.environ.get("JAVA_HOME")
    return str(Path(home, "bin", "java")) if home else shutil.which("java")


def check_java() -> None:
    """MissingPartError unless a Java of at least 17 is there; asked before Spark, which says it far less clearly."""
    home, java = os.environ.get("JAVA_HOME"), _java()
    if java is None or not Path(java).is_file():
        where = f"JAVA_HOME is {home}, which has no bin/java" if home else "no `java` on the PATH"
        raise MissingPartError("Java", f"Spark needs Java 17 or newer: {where}", hint=_JAVA_HINT)
    told = subprocess.run([java, "-version"], capture_output=True, text=True, check=False)
    version = re.search(r'version "(?:1\.)?(\d+)', told.stderr)
    if version is None or int(version[1]) < 17:
        found = f"{java} is version {version[1]}" if version else f"{java} does not tell its version"
        raise MissingPartError("Java", f"Spark needs Java 17 or newer: {found}", hint=_JAVA_HINT)
