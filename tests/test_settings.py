"""Profiles: what a file and the environment may say, and that no secret stands in either."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from feature_defs.errors import MissingPartError, UsageError
from jobs.online_address import secret
from jobs.settings import ParallelSettings, Settings, load_settings
from tests.definition_files import edited

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = sorted(ROOT.glob("conf/*.toml"))

PROFILE = """\
name = "place"
definitions = "../definitions"
[lakes]
raw = "lake/raw"
features = "hdfs://name:8020/features/"
[online]
kind = "redis"
url = "redis://host:6379/0"
password = "env:TIDEMARK_REDIS_PASSWORD"
timeout_seconds = 2
[spark]
master = "local[2]"
[spark.conf]
"spark.ui.enabled" = "false"
"""


def read(folder: Path, text: str = PROFILE, **environment: str) -> Settings:
    """The settings of this text, with nothing in the environment but what is given."""
    path = folder / "conf" / "place.toml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return load_settings(str(path), environment)


def refused(folder: Path, text: str = PROFILE, **environment: str) -> UsageError:
    with pytest.raises(UsageError) as raised:
        read(folder, text, **environment)
    assert raised.value.exit_code == 4
    return raised.value


# --- files ---


@pytest.mark.parametrize("path", SHIPPED, ids=[path.stem for path in SHIPPED])
def test_every_shipped_profile_loads_and_is_named_as_its_file(path: Path) -> None:
    settings = load_settings(str(path), {})
    assert settings.name == path.stem
    assert {"raw", "features", "work"} <= settings.lakes.keys()
    assert list(Path(settings.definitions).glob("*.py"))


def test_local_onprem_and_databricks_are_shipped() -> None:
    assert {"local", "onprem", "databricks"} <= {path.stem for path in SHIPPED}


def test_a_profile_is_read_into_its_settings(tmp_path: Path) -> None:
    settings = read(tmp_path)
    assert (settings.name, settings.registry, settings.offline) == (
        "place",
        "lake://features/_registry",
        "lake://features",
    )
    assert (settings.online.kind, settings.online.timeout_seconds) == ("redis", 2.0)
    assert settings.online.password == "env:TIDEMARK_REDIS_PASSWORD"
    assert (settings.spark.master, settings.spark.conf) == ("local[2]", {"spark.ui.enabled": "false"})


def test_relative_paths_start_at_the_profiles_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the command is run."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    settings = read(tmp_path)
    assert settings.definitions == str(tmp_path / "definitions")
    assert settings.lakes == {"raw": f"file://{tmp_path}/conf/lake/raw", "features": "hdfs://name:8020/features"}


def test_a_lake_in_a_folder_with_a_space_is_not_escaped(tmp_path: Path) -> None:
    """Spark takes %20 for a name, so a URI that says it would be another folder than the registry's."""
    settings = read(tmp_path, edited(('"lake/raw"', '"my lake/50%"'), text=PROFILE))
    assert settings.lakes["raw"] == f"file://{tmp_path}/conf/my lake/50%"


def test_a_profile_is_found_by_name_and_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = read(tmp_path).file
    monkeypatch.chdir(tmp_path)
    assert load_settings("place", {}).file == path
    assert load_settings(None, {"TIDEMARK_PROFILE": "place"}).file == path
    assert load_settings(None, {"TIDEMARK_PROFILE": path}).file == path


def test_an_unknown_profile_is_answered_by_those_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as raised:
        load_settings("plac", {})
    assert raised.value.subject == "Profile 'plac'"
    assert raised.value.problem == "there is no file conf/plac.toml (profiles here: place)"
    assert raised.value.hint.startswith("did you mean 'place'? name a file with --profile PATH.toml")


@pytest.mark.parametrize(
    ("old", "new", "problem", "hint"),
    [
        ('definitions = "../definitions"\n', "", "key 'definitions' is missing", "add definitions = ..."),
        ('name = "place"\n', "", "key 'name' is missing", "add name = ..."),
        ('[lakes]\nraw = "lake/raw"\nfeatures = "hdfs://name:8020/features/"\n', "", "key 'lakes' is missing",
         "add lakes = ..."),
        ("definitions =", "definition =", "key 'definition' is not known",
         "did you mean 'definitions'? known: name, definitions"),
        ("master =", "mastr =", "key 'spark.mastr' is not known", "did you mean 'master'?"),
        ("timeout_seconds", "timeout", "key 'online.timeout' is not known", "did you mean 'timeout_seconds'?"),
        ("[spark]", 'file = "x"\n[spark]', "key 'online.file' is not known", "known: kind, url"),
        ('name = "place"', 'name = "place"\nfile = "x"', "key 'file' is not known", "known: name"),
        ('name = "place"', "name = 5", "key 'name' is int, expected text", "correct its value"),
        ("timeout_seconds = 2", 'timeout_seconds = "2"', "key 'online.timeout_seconds' is str, expected a number",
         "correct its value"),
        ("timeout_seconds = 2", "timeout_seconds = true", "key 'online.timeout_seconds' is bool, expected a number",
         "correct its value"),
        ('[spark]\n', '[spark]\njars = "no"\n', "key 'spark.jars' is str, expected true or false", "correct its value"),
        ('"lake/raw"', "5", "key 'lakes.raw' is int, expected text", "correct its value"),
        ('"lake/raw"', '"lake/[raw]"', "lakes.raw is file://", "give the lake a folder without any of"),
        ('"spark.ui.enabled" = "false"', '"spark.ui.enabled" = false',
         "key 'spark.conf.spark.ui.enabled' is bool, expected text", "correct its value"),
        ('[lakes]\nraw = "lake/raw"\nfeatures = "hdfs://name:8020/features/"\n', 'lakes = "lake"\n',
         "key 'lakes' is str, expected a table", "correct its value"),
        ('kind = "redis"', 'kind = "rediss"', "online.kind 'rediss' is not known",
         "did you mean 'redis'? use one of embedded, redis, none"),
        ('url = "redis://host:6379/0"\n', "", "online.kind is redis, but online.url is missing",
         'url = "redis://host:6379/0"'),
        ('kind = "redis"', 'kind = "embedded"', "online.kind is embedded, but online.folder is missing", "folder = "),
        ("redis://host", "redis://[host", "online.url is not a URL", "redis://host:6379/0"),
        ('name = "place"', "name = place", "is not TOML: ", "correct "),
        ('name = "place"', 'name = "place"\nname = "again"', "is not TOML: ", "correct "),
    ],
)  # fmt: skip
def test_a_mistake_in_a_profile_is_named(tmp_path: Path, old: str, new: str, problem: str, hint: str) -> None:
    error = refused(tmp_path, edited((old, new), text=PROFILE))
    assert error.subject == "Profile 'place.toml'"
    assert problem in error.problem
    assert hint in error.hint


def test_a_file_that_is_no_text_is_no_profile(tmp_path: Path) -> None:
    path = tmp_path / "place.toml"
    path.write_bytes(b"name = '\xff'")
    with pytest.raises(UsageError, match="is not TOML"):
        load_settings(str(path), {})


# --- environment ---


def test_a_variable_overrides_the_key_it_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = read(
        tmp_path,
        TIDEMARK_NAME="other",
        TIDEMARK_ONLINE_URL="redis://elsewhere:1/2",
        TIDEMARK_ONLINE_TIMEOUT_SECONDS="0.5",
        TIDEMARK_SPARK_JARS="false",
        TIDEMARK_LAKES_RAW="abfss://raw@account.dfs.core.windows.net/",
        TIDEMARK_LAKES_WORK="work",
        PATH="/bin",
    )
    assert (settings.name, settings.online.url, settings.online.timeout_seconds) == (
        "other",
        "redis://elsewhere:1/2",
        0.5,
    )
    assert (settings.spark.jars, settings.spark.master) == (False, "local[2]")
    assert settings.lakes == {
        "raw": "abfss://raw@account.dfs.core.windows.net",
        "features": "hdfs://name:8020/features",
        "work": f"file://{tmp_path}/work",
    }


def test_a_path_in_a_variable_starts_at_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert read(tmp_path, TIDEMARK_DEFINITIONS="mine").definitions == str(tmp_path / "here" / "mine")


@pytest.mark.parametrize("table", ["lakes", "online", "spark"])
def test_a_variable_makes_the_table_it_needs(tmp_path: Path, table: str) -> None:
    minimal = 'name = "place"\ndefinitions = "."\n[lakes]\n[online]\nkind = "none"\n'
    variable = {"lakes": "TIDEMARK_LAKES_RAW", "online": "TIDEMARK_ONLINE_USERNAME", "spark": "TIDEMARK_SPARK_MASTER"}
    settings = read(tmp_path, minimal, **{variable[table]: "local"})
    assert (settings.lakes.get("raw"), settings.online.username, settings.spark.master).count("local") == (
        table != "lakes"
    )
    assert (table == "lakes") == ("raw" in settings.lakes)


@pytest.mark.parametrize(
    ("variable", "value", "problem", "hint"),
    [
        ("TIDEMARK_ONLINE_ULR", "x", "names no key of a profile", "did you mean 'TIDEMARK_ONLINE_URL'?"),
        ("TIDEMARK_LAKE_RAW", "x", "names no key of a profile", "unset it, or use TIDEMARK_TABLE_KEY"),
        ("TIDEMARK_FILE", "x", "names no key of a profile", "unset it"),
        ("TIDEMARK_SPARK_JARS", "no", "expected true or false", "correct its value"),
        ("TIDEMARK_ONLINE_TIMEOUT_SECONDS", "soon", "expected a number", "correct its value"),
    ],
)
def test_a_variable_that_is_a_mistake_is_refused(
    tmp_path: Path, variable: str, value: str, problem: str, hint: str
) -> None:
    error = refused(tmp_path, **{variable: value})
    assert (error.subject, error.problem) == (f"Environment variable {variable}", problem)
    assert hint in error.hint


@pytest.mark.parametrize("table", ["lakes", "online"])
def test_a_variable_for_a_table_that_is_no_table_leaves_the_files_fault_to_be_told(tmp_path: Path, table: str) -> None:
    text = f'name = "place"\ndefinitions = "."\n{table} = 5\n' + ("[lakes]\n" if table == "online" else "")
    error = refused(tmp_path, text, TIDEMARK_LAKES_RAW="x", TIDEMARK_ONLINE_URL="redis://host")
    assert f"key '{table}' is int" in error.problem


# --- databases ---

DATABASE = (
    PROFILE
    + """\
[databases.shop]
url = "jdbc:postgresql://host:5432/shop"
user = "reader"
password = "env:TIDEMARK_SHOP"
jars = "org.postgresql:postgresql:42.7.7"
fetch_size = 1000
[databases.shop.parallel."public.orders"]
column = "order_id"
lower = 1
upper = 1_000_000
partitions = 8
"""
)


def test_a_database_is_read_into_its_settings(tmp_path: Path) -> None:
    shop = read(tmp_path, DATABASE, TIDEMARK_SHOP="hunter2").databases["shop"]
    assert (shop.url, shop.user, shop.driver) == ("jdbc:postgresql://host:5432/shop", "reader", "")
    assert (shop.password, shop.fetch_size, shop.jars) == (
        "env:TIDEMARK_SHOP",
        1000,
        "org.postgresql:postgresql:42.7.7",
    )
    assert shop.parallel["public.orders"] == ParallelSettings("order_id", 1, 1_000_000, 8)
    assert read(tmp_path).databases == {}


def test_a_variable_overrides_a_key_of_a_database(tmp_path: Path) -> None:
    variables = {
        "TIDEMARK_DATABASES_SHOP_URL": "jdbc:postgresql://other/shop", "TIDEMARK_DATABASES_SHOP_FETCH_SIZE": "5",
        "TIDEMARK_DATABASES_OLD_SHOP_URL": "jdbc:sqlite:old.db",
    }  # fmt: skip
    databases = read(tmp_path, DATABASE, **variables).databases
    assert (databases["shop"].url, databases["shop"].fetch_size) == ("jdbc:postgresql://other/shop", 5)
    assert databases["shop"].user == "reader"
    assert databases["old_shop"].url == "jdbc:sqlite:old.db"
    error = refused(tmp_path, DATABASE, TIDEMARK_DATABASES_SHOP_FETCH_SIZE="many")
    assert error.problem == "expected a whole number"
    error = refused(tmp_path, DATABASE, TIDEMARK_DATABASES_SHOP_ULR="x")
    assert error.problem == "names no key of a profile"


@pytest.mark.parametrize(
    ("old", "new", "problem", "hint"),
    [
        ("url = \"jdbc", "ulr = \"jdbc", "key 'databases.shop.ulr' is not known", "did you mean 'url'?"),
        ("partitions = 8", "partition = 8", "key 'databases.shop.parallel.public.orders.partition' is not known",
         "did you mean 'partitions'?"),
        ("lower = 1", "lower = '1'", "parallel.public.orders.lower' is str, expected a whole number", "correct"),
        ("fetch_size = 1000", "fetch_size = 1.5", "key 'databases.shop.fetch_size' is float, expected a whole number",
         "correct"),
        ("fetch_size = 1000", "fetch_size = -1", "databases.shop.fetch_size is -1, expected rows", "fetch_size ="),
        ("lower = 1\n", "lower = 2_000_000\n", "expected lower < upper", "partitions = 8"),
        ("partitions = 8", "partitions = 0", "at least one partition", "partitions = 8"),
        ("jdbc:postgresql://", "postgresql://", "databases.shop.url is not a JDBC URL", "jdbc:postgresql://"),
        ("org.postgresql:postgresql:42.7.7", "postgresql.jar", "'postgresql.jar' is not GROUP:ARTIFACT:VERSION",
         "spark.jars"),
        ("[databases.shop]\n", "[databases]\nother = 5\n[databases.shop]\n",
         "key 'databases.other' is int, expected a table", "correct"),
        ('"env:TIDEMARK_SHOP"', '"hunter2"', "databases.shop.password is a literal", 'password = "env:NAME"'),
        ("5432/shop", "5432/shop?ssl=true&password=hunter2", "databases.shop.url holds a password", "take it out"),
        ("5432/shop", "5432/shop;Pwd=hunter2", "databases.shop.url holds a password", "take it out"),
        ("postgresql://host", "postgresql://me:hunter2@host", "databases.shop.url holds a password", "take it out"),
        ("postgresql://host", "oracle:thin:me/hunter2@host", "databases.shop.url holds a password", "take it out"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_database_is_named_and_no_secret_repeated(
    tmp_path: Path, old: str, new: str, problem: str, hint: str
) -> None:
    error = refused(tmp_path, edited((old, new), text=DATABASE))
    assert error.subject == "Profile 'place.toml'"
    assert problem in error.problem
    assert hint in error.hint
    assert "hunter2" not in str(error)


@pytest.mark.parametrize("url", ["jdbc:oracle:thin:@//host:1521/shop", "jdbc:sqlite:/data/shop.db", "jdbc:h2:mem:shop",
                                 "jdbc:sqlserver://host:1433;databaseName=shop;encrypt=true"])  # fmt: skip
def test_a_url_without_a_password_is_taken(tmp_path: Path, url: str) -> None:
    text = edited(("jdbc:postgresql://host:5432/shop", url), text=DATABASE)
    assert read(tmp_path, text).databases["shop"].url == url


# --- secrets ---


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('"env:TIDEMARK_REDIS_PASSWORD"', '"hunter2"', "online.password is a literal; secrets are never in a profile"),
        ("redis://host", "redis://:hunter2@host", "online.url holds a password; secrets are never in a profile"),
        ("redis://host", "redis://me:hunter2@host", "online.url holds a password; secrets are never in a profile"),
        ("6379/0", "6379/0?password=hunter2", "online.url holds a password; secrets are never in a profile"),
        ("redis://host", "redis://:hunter2@[host", "online.url is not a URL"),
    ],
)
def test_a_secret_in_a_profile_is_refused_and_not_repeated(tmp_path: Path, old: str, new: str, problem: str) -> None:
    error = refused(tmp_path, edited((old, new), text=PROFILE))
    assert error.problem == problem
    assert "hunter2" not in str(error)


def test_a_literal_password_in_the_environment_is_refused_too(tmp_path: Path) -> None:
    """TIDEMARK_ONLINE_PASSWORD names a secret as the key does."""
    error = refused(tmp_path, TIDEMARK_ONLINE_PASSWORD="hunter2")
    assert "is a literal" in error.problem
    assert "hunter2" not in str(error)


def test_the_variable_that_holds_the_secret_may_have_any_name(tmp_path: Path) -> None:
    """Also when another variable names it, wherever the two stand in the alphabet."""
    assert read(tmp_path, TIDEMARK_REDIS_PASSWORD="hunter2").online.password == "env:TIDEMARK_REDIS_PASSWORD"
    named = {"TIDEMARK_A": "hunter2", "TIDEMARK_ONLINE_PASSWORD": "env:TIDEMARK_A"}
    assert read(tmp_path, **named).online.password == "env:TIDEMARK_A"


def test_no_secret_is_in_the_settings(tmp_path: Path) -> None:
    assert "hunter2" not in repr(read(tmp_path, TIDEMARK_REDIS_PASSWORD="hunter2"))


def test_a_secret_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_SECRET", "hunter2")
    assert secret("env:REDIS_SECRET") == "hunter2"


def test_a_secret_that_is_not_in_the_environment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REDIS_SECRET", raising=False)
    with pytest.raises(UsageError, match="environment variable REDIS_SECRET is not set"):
        secret("env:REDIS_SECRET")


def test_a_secret_is_read_from_a_scope_on_databricks(monkeypatch: pytest.MonkeyPatch) -> None:
    """databricks.sdk.runtime is there only where a cluster brings it, so this is a stand-in with its one function."""
    kept = {("tidemark", "redis/password"): "hunter2"}
    runtime = ModuleType("databricks.sdk.runtime")
    runtime.dbutils = SimpleNamespace(secrets=SimpleNamespace(get=lambda scope, key: kept[scope, key]))  # type: ignore[attr-defined]  # a module made here
    for name in ("databricks", "databricks.sdk"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "databricks.sdk.runtime", runtime)
    assert secret("scope:tidemark/redis/password") == "hunter2"


def test_a_scope_elsewhere_is_a_missing_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "databricks", None)
    with pytest.raises(MissingPartError) as raised:
        secret("scope:tidemark/redis-password")
    assert raised.value.exit_code == 8
    assert raised.value.problem == "secret scope 'tidemark' can be read on Databricks only"
    assert 'password = "env:NAME"' in raised.value.hint
