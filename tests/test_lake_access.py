"""What a profile says of HDFS and ADLS Gen2, once: for the file stores, and for Spark in Hadoop's words."""

from __future__ import annotations

import dataclasses
import pickle
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from connectors.adls_files import AdlsFileStore, _credential, driver_refusal
from connectors.file_store import open_file_store, use_file_stores
from connectors.hdfs_files import HdfsFileStore, _client
from feature_defs.errors import LakeError, MissingPartError, UsageError
from jobs.lake_access import ABFS_JARS, hadoop_conf, hadoop_user, use_lakes
from jobs.session import _SECRETS, DELTA_JARS, _anew, with_jars
from jobs.settings import AdlsSettings, HdfsSettings, Settings, load_settings
from tests.definition_files import edited
from tests.test_settings import read, refused

PROFILE = """\
name = "place"
definitions = "../definitions"
[lakes]
raw = "hdfs://main/lake/raw"
old = "hdfs://nn.example.com:8020/old"
features = "abfss://features@acme.dfs.core.windows.net"
[tables]
clicks = "lake://raw/tables"
[hdfs.main]
webhdfs = "http://nn1:9870, http://nn2:9870/"
namenodes = "nn1:8020, nn2:8020"
user = "etl"
[hdfs."nn.example.com"]
webhdfs = "https://nn.example.com:9871"
kerberos = true
[adls.acme]
auth = "key"
secret = "env:TIDEMARK_ACME"
[online]
kind = "none"
"""
HOST = "acme.dfs.core.windows.net"
COMMON = {"fs.azure.metrics.collection.enabled": "false"} | {
    f"mapreduce.outputcommitter.factory.scheme.{scheme}": (
        "org.apache.hadoop.mapreduce.lib.output.FileOutputCommitterFactory"
    )
    for scheme in ("abfs", "abfss")
}


def test_hdfs_and_adls_are_read_into_their_settings(tmp_path: Path) -> None:
    settings = read(tmp_path, PROFILE, TIDEMARK_ACME="hunter2")
    assert settings.hdfs["main"].user == "etl"
    assert (settings.hdfs["nn.example.com"].kerberos, settings.hdfs["main"].timeout_seconds) == (True, 60.0)
    assert settings.adls["acme"] == AdlsSettings(auth="key", secret="env:TIDEMARK_ACME")
    assert settings.tables == {"clicks": "lake://raw/tables"}
    assert "hunter2" not in repr(settings)


def test_a_variable_overrides_a_key_of_them(tmp_path: Path) -> None:
    variables = {
        "TIDEMARK_HDFS_MAIN_TIMEOUT_SECONDS": "5", "TIDEMARK_HDFS_MAIN_KERBEROS": "true",
        "TIDEMARK_ADLS_ACME_AUTH": "sas", "TIDEMARK_ADLS_ACME_SECRET": "env:TIDEMARK_SAS", "TIDEMARK_SAS": "hunter2",
        "TIDEMARK_ADLS_OTHER_AUTH": "identity", "TIDEMARK_TABLES_CLICKS": "lake://features",
    }  # fmt: skip
    settings = read(tmp_path, PROFILE, **variables)
    assert (settings.hdfs["main"].timeout_seconds, settings.hdfs["main"].kerberos) == (5.0, True)
    assert settings.adls["acme"] == AdlsSettings(auth="sas", secret="env:TIDEMARK_SAS")
    assert settings.adls["other"] == AdlsSettings()
    assert settings.tables == {"clicks": "lake://features"}
    assert refused(tmp_path, PROFILE, TIDEMARK_ADLS_ACME_KEY="x").problem == "names no key of a profile"
    assert refused(tmp_path, PROFILE, TIDEMARK_HDFS_MAIN_KERBEROS="yes").problem == "expected true or false"


@pytest.mark.parametrize(
    ("old", "new", "problem", "hint"),
    [
        ('user = "etl"', 'usr = "etl"', "key 'hdfs.main.usr' is not known", "did you mean 'user'?"),
        ('webhdfs = "http://nn1:9870, http://nn2:9870/"\n', "", "key 'hdfs.main.webhdfs' is missing", "add webhdfs"),
        ("http://nn1:9870,", "nn1:9870,", "hdfs.main.webhdfs 'nn1:9870' is not the HTTP address", "http://nn1:9870"),
        ("http://nn1:9870,", "http://me:hunter2@nn1:9870,", "webhdfs holds more than", "webhdfs ="),
        ("nn1:8020,", "hdfs://nn1:8020,", "hdfs.main.namenodes 'hdfs://nn1:8020' is not HOST:PORT", "nn1:8020"),
        ("kerberos = true", 'kerberos = "yes"', "hdfs.nn.example.com.kerberos' is str, expected true or f", "correct"),
        ('auth = "key"', 'auth = "keys"', "adls.acme.auth 'keys' is not known", "did you mean 'key'? use one of key,"),
        ('auth = "key"', 'auth = "principal"', "adls.acme.tenant is missing", "needs tenant, client, secret"),
        ('secret = "env:TIDEMARK_ACME"\n', "", "adls.acme.secret is missing", "auth key needs secret"),
        ('"env:TIDEMARK_ACME"', '"hunter2"', "adls.acme.secret is a literal; secrets are never", "env:NAME"),
        ('auth = "key"', 'auth = "key"\nendpoint = "https://x/?sig=hunter2"', "adls.acme.endpoint is not", "nothing"),
        ('"lake://raw/tables"', '"/raw"', "tables.clicks '/raw' is not a lake path", "lake://NAME/path"),
    ],
)  # fmt: skip
def test_a_mistake_in_them_is_named_and_no_secret_repeated(
    tmp_path: Path, old: str, new: str, problem: str, hint: str
) -> None:
    error = refused(tmp_path, edited((old, new), text=PROFILE))
    assert problem in error.problem
    assert hint in error.hint
    assert "hunter2" not in str(error)


# --- file stores ---


def test_each_lake_is_opened_as_the_profile_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDEMARK_ACME", "hunter2")
    use_lakes(read(tmp_path, PROFILE, TIDEMARK_ACME="hunter2"))
    pair = HdfsFileStore("main", ("http://nn1:9870", "http://nn2:9870"), user="etl")
    assert open_file_store("hdfs://main/lake/raw/x") == pair
    kerberized = HdfsFileStore("nn.example.com", ("https://nn.example.com:9871",), kerberos=True)
    assert open_file_store("hdfs://nn.example.com:8020/old") == kerberized
    account = open_file_store(f"abfss://features@{HOST}/x")
    assert account == AdlsFileStore("acme", f"https://{HOST}", auth="key", secret="hunter2")
    assert "hunter2" not in repr(account)
    assert pickle.loads(pickle.dumps(account)) == account  # to a process that reads a share of a dataset


def test_a_secret_is_asked_for_when_a_file_is_and_not_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`tidemark check` needs none."""
    monkeypatch.delenv("TIDEMARK_ACME", raising=False)
    use_lakes(read(tmp_path, PROFILE))
    with pytest.raises(UsageError, match="environment variable TIDEMARK_ACME is not set"):
        open_file_store(f"abfss://features@{HOST}/x")


def test_a_lake_without_its_table_is_told_what_to_add() -> None:
    lakes = {"a": "hdfs://bare:8020/lake", "b": "abfss://b@bare.dfs.core.windows.net", "c": "hdfs://nn.x.y/lake"}
    use_lakes(Settings(name="test", definitions=".", lakes=lakes))
    for uri, hint in (
        ("hdfs://bare:8020/lake", '[hdfs.bare] webhdfs = "http://bare:9870"'),
        ("hdfs://nn.x.y/lake", '[hdfs."nn.x.y"] webhdfs = "http://nn.x.y:9870"'),
        ("abfss://b@bare.dfs.core.windows.net/x", '[adls.bare] auth = "identity"'),
    ):
        with pytest.raises(UsageError) as raised:
            open_file_store(uri)
        assert hint in raised.value.hint


def test_the_shipped_profiles_name_how_their_lakes_are_reached() -> None:
    onprem, databricks = (load_settings(f"conf/{name}.toml", {}) for name in ("onprem", "databricks"))
    use_lakes(onprem)
    assert isinstance(open_file_store(onprem.lakes["raw"]), HdfsFileStore)
    use_lakes(databricks)
    with pytest.raises(MissingPartError, match="secret scope 'tidemark' can be read on Databricks only"):
        open_file_store(databricks.lakes["raw"])


def test_every_way_to_sign_in_makes_its_credential() -> None:
    from azure import identity

    def made(**told: str) -> object:
        return _credential(AdlsFileStore("acme", f"https://{HOST}", **told))

    assert type(made(auth="key", secret="a2V5")).__name__ == "AzureNamedKeyCredential"
    assert type(made(auth="sas", secret="?sv=1&sig=x")).__name__ == "AzureSasCredential"
    told = {"tenant": "00000000-0000-0000-0000-000000000000", "client": "c", "secret": "s"}
    assert isinstance(made(auth="principal", **told), identity.ClientSecretCredential)
    assert isinstance(made(auth="identity", client="c"), identity.ManagedIdentityCredential)
    assert isinstance(made(auth="identity"), identity.ManagedIdentityCredential)


@pytest.mark.parametrize(
    ("missing", "uri", "hint"),
    [
        ("hdfs", "hdfs://main/lake/raw", "pip install 'tidemark[hdfs]'"),
        ("requests_kerberos", "hdfs://nn.example.com:8020/old", "pip install 'tidemark[kerberos]'"),
        ("azure.storage.filedatalake", f"abfss://features@{HOST}", "pip install 'tidemark[adls]'"),
    ],
)
def test_a_missing_package_is_said_with_the_extra_that_brings_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str, uri: str, hint: str
) -> None:
    monkeypatch.setenv("TIDEMARK_ACME", "hunter2")
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.delitem(sys.modules, "hdfs.ext.kerberos", raising=False)
    text = edited(
        ('user = "etl"', 'user = "missing"'), ("9871", "9872"), ("hunter", "missing"), text=PROFILE + "#hunter"
    )
    use_lakes(read(tmp_path, text, TIDEMARK_ACME="hunter2"))
    with pytest.raises(MissingPartError) as raised:
        open_file_store(uri).list_files(uri)
    assert raised.value.hint == hint


def test_a_forked_process_has_connections_of_its_own() -> None:
    store = HdfsFileStore("main", ("http://nn1:9870",))
    assert _client(store, 1) is _client(store, 1)
    assert _client(store, 1) is not _client(store, 2)


def test_a_cluster_that_does_not_answer_is_a_lake_error_that_names_it() -> None:
    for store, uri in (
        (HdfsFileStore("main", ("http://127.0.0.1:1", "http://127.0.0.1:2"), seconds=0.1), "hdfs://main/a"),
        (
            AdlsFileStore("acme", "http://127.0.0.1:1/acme", auth="key", secret="a2V5", seconds=0.1),
            f"abfss://a@{HOST}/a",
        ),
    ):
        for action in (store.read, store.list_files, store.delete, lambda uri, store=store: store.create(uri, b"x")):
            with pytest.raises(LakeError, match="does not answer") as raised:
                action(uri)
            assert raised.value.subject.startswith(f"Lake path '{uri.rpartition('/')[0]}")


REFUSED = (
    'Job aborted ... Caused by: Operation failed: "Server failed to authenticate.", {status}, {method}, https://{url}'
    "?action=append&position=0&se=2026-01-01T00:00:00Z&sig=XXXXX, rId: 1-2{code}\n\tat org.apache"
)


@pytest.mark.parametrize(
    ("adls", "told", "subject", "problem", "hint"),
    [
        ({"auth": "sas", "secret": "?sv=1&se=2026-01-31T12%3A00%3A00Z&sig=hunter2"},
         {"status": 403, "method": "PUT", "url": f"{HOST}/raw/a/b%20c", "code": ', AuthenticationFailed, "Server"'},
         "/a/b c", "cannot write it: AuthenticationFailed (403), the SAS of account 'acme' expired at 2026-01-31 12:00",
         "put a new SAS where [adls.acme] secret says, and run it again"),
        ({"auth": "sas", "secret": "se=2026-01-31&sig=hunter2"},
         {"status": 403, "method": "HEAD", "url": f"{HOST}/raw"},
         "", "cannot read it: refused (403), the SAS of account 'acme' expired at 2026-01-31 00:00:00", "put a new"),
        ({"auth": "sas", "secret": "se=2999-01-31&sig=hunter2"},
         {"status": 403, "method": "GET", "url": f"{HOST}/raw/a", "code": ", AuthorizationPermissionMismatch"},
         "/a", "cannot read it: AuthorizationPermissionMismatch (403)", "[adls.acme] signs in by sas: renew it if it"),
        ({"auth": "sas", "secret": "se=tomorrow&sig=hunter2"}, {"status": 403, "method": "GET", "url": f"{HOST}/raw/a"},
         "/a", "cannot read it: refused (403)", "[adls.acme] signs in by sas: renew it if it"),
        ({"endpoint": "https://10.0.0.4"}, {"status": 401, "method": "DELETE", "url": "10.0.0.4/acme/raw/a"},
         "/a", "cannot write it: refused (401)", "[adls.acme] signs in by identity"),
    ],
)  # fmt: skip
def test_what_an_account_refuses_spark_is_told_as_of_our_own_requests(
    adls: dict[str, str], told: dict[str, object], subject: str, problem: str, hint: str
) -> None:
    place = f"abfss://raw@{HOST}"
    use_file_stores({place: lambda: AdlsFileStore("acme", **{"endpoint": f"https://{HOST}", **adls})})
    found = driver_refusal(REFUSED.format(**{"code": "", **told}))
    assert found is not None
    assert found.subject == f"Lake path '{place}{subject}'"
    assert found.problem.startswith(problem)
    assert found.hint.startswith(hint)
    assert "hunter2" not in str(found)


def test_what_no_account_of_the_profile_refused_is_left_to_spark() -> None:
    use_file_stores({f"abfss://raw@{HOST}": lambda: AdlsFileStore("acme", f"https://{HOST}")})
    for url in (f"{HOST}/raw2/a", "other.dfs.core.windows.net/raw/a"):
        assert driver_refusal(REFUSED.format(status=403, method="GET", url=url, code="")) is None
    assert driver_refusal(REFUSED.format(status=503, method="GET", url=f"{HOST}/raw/a", code="")) is None


# --- Spark ---


def test_spark_is_told_the_same_in_hadoops_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDEMARK_ACME", "hunter2")
    settings = read(tmp_path, PROFILE, TIDEMARK_ACME="hunter2")
    assert hadoop_conf(settings) == {
        **COMMON,
        f"fs.azure.account.auth.type.{HOST}": "SharedKey",
        f"fs.azure.account.key.{HOST}": "hunter2",
        "dfs.nameservices": "main",
        "dfs.ha.namenodes.main": "nn1,nn2",
        "dfs.namenode.rpc-address.main.nn1": "nn1:8020",
        "dfs.namenode.rpc-address.main.nn2": "nn2:8020",
        "dfs.client.failover.proxy.provider.main": (
            "org.apache.hadoop.hdfs.server.namenode.ha.ConfiguredFailoverProxyProvider"
        ),
    }
    assert hadoop_user(settings) == "etl"


@pytest.mark.parametrize(
    ("adls", "expected"),
    [
        (AdlsSettings(auth="sas", secret="env:S"), {"account.auth.type": "SAS", "sas.fixed.token": "sv=1&sig=x"}),
        (AdlsSettings(), {"account.auth.type": "OAuth",
                          "account.oauth.provider.type": "org.apache.hadoop.fs.azurebfs.oauth2.MsiTokenProvider"}),
        (AdlsSettings(client="c"), {"account.auth.type": "OAuth", "account.oauth2.client.id": "c",
                          "account.oauth.provider.type": "org.apache.hadoop.fs.azurebfs.oauth2.MsiTokenProvider"}),
        (AdlsSettings(auth="principal", tenant="t", client="c", secret="env:S"),
         {"account.auth.type": "OAuth", "account.oauth2.client.id": "c", "account.oauth2.client.secret": "?sv=1&sig=x",
          "account.oauth2.client.endpoint": "https://login.microsoftonline.com/t/oauth2/token",
          "account.oauth.provider.type": "org.apache.hadoop.fs.azurebfs.oauth2.ClientCredsTokenProvider"}),
    ],
)  # fmt: skip
def test_every_way_to_sign_in_reaches_spark(
    monkeypatch: pytest.MonkeyPatch, adls: AdlsSettings, expected: dict[str, str]
) -> None:
    monkeypatch.setenv("S", "?sv=1&sig=x")
    settings = Settings(name="test", definitions=".", lakes={"a": f"abfss://a@{HOST}/x"}, adls={"acme": adls})
    assert hadoop_conf(settings) == COMMON | {f"fs.azure.{key}.{HOST}": v for key, v in expected.items()}


@pytest.mark.parametrize("key", ["account.key", "sas.fixed.token", "account.oauth2.client.secret"])
def test_spark_shows_no_secret_of_a_session(key: str) -> None:
    """Its pages tell the settings of each query, but for those that match."""
    assert re.search(_SECRETS, f"fs.azure.{key}.{HOST}")
    assert not re.search(_SECRETS, f"fs.azure.account.auth.type.{HOST}")


def test_a_session_that_is_told_another_credential_opens_file_systems_anew() -> None:
    """What is said of another account, or of where accounts are, leaves those that are open."""
    token = f"fs.azure.sas.fixed.token.{HOST}"
    session = SimpleNamespace(conf={token: "old", "fs.azure.abfs.endpoint": "10.0.0.4"})
    anew = {"fs.abfs.impl.disable.cache": "true", "fs.abfss.impl.disable.cache": "true"}
    assert _anew(session, {token: "new"}) == anew
    for same in ({token: "old"}, {f"{token}.cn": "new"}, {"fs.azure.abfs.endpoint": "10.0.0.5"}, {}):
        assert _anew(session, same) == {}


def test_an_account_elsewhere_is_told_to_spark_with_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("S", "a2V5")
    for endpoint, expected in (
        ("http://127.0.0.1:10000/acme", {
            "fs.azure.abfs.endpoint": "127.0.0.1:10000", "fs.azure.always.use.https": "false",
            "fs.azure.networking.library": "JDK_HTTP_URL_CONNECTION"}),
        ("https://10.0.0.4", {"fs.azure.abfs.endpoint": "10.0.0.4"}),
        (f"https://{HOST}", {}),
    ):  # fmt: skip
        adls = AdlsSettings(auth="key", secret="env:S", endpoint=endpoint)
        conf = hadoop_conf(
            Settings(name="test", definitions=".", lakes={"a": f"abfss://a@{HOST}"}, adls={"acme": adls})
        )
        assert {key: value for key, value in conf.items() if HOST not in key and key not in COMMON} == expected


def test_a_single_namenode_is_waited_for_and_a_pair_fails_over() -> None:
    """Waits that double, of which Hadoop takes the first twice. The key is one for all HDFS: beside a pair it stays."""

    def conf(**clusters: HdfsSettings) -> dict[str, str]:
        return hadoop_conf(Settings(name="test", definitions=".", lakes={}, hdfs=clusters))

    single = HdfsSettings(webhdfs="http://x:1", namenodes="x:8020", timeout_seconds=32)
    waits = {
        "dfs.client.retry.policy.enabled": "true",
        "dfs.client.retry.policy.spec": "1000,1,2000,1,4000,1,8000,1,16000,1",
    }
    assert conf(a=single) == waits
    assert conf(a=single, b=dataclasses.replace(single, timeout_seconds=8)) == waits
    assert conf(a=dataclasses.replace(single, timeout_seconds=0)) == conf() == {}
    for pair in (
        HdfsSettings(webhdfs="http://x:1, http://y:1"),
        HdfsSettings(webhdfs="http://x:1", namenodes="x:1,y:1"),
    ):
        assert not {key for key in conf(a=single, b=pair) if "retry" in key}


def test_two_pairs_of_namenodes_are_both_named() -> None:
    pairs = {name: HdfsSettings(webhdfs="http://x:1", namenodes=f"{name}1:8020,{name}2:8020") for name in ("a", "b")}
    conf = hadoop_conf(Settings(name="test", definitions=".", lakes={}, hdfs=pairs))
    assert (conf["dfs.nameservices"], conf["dfs.ha.namenodes.b"]) == ("a,b", "nn1,nn2")


def test_the_driver_of_abfs_comes_with_deltas_jars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.session._homes", lambda: [tmp_path])  # nothing cached
    with_abfs = Settings(name="test", definitions=".", lakes={"a": f"abfss://a@{HOST}"})
    assert with_jars(with_abfs)["spark.jars.packages"].split(",") == [*DELTA_JARS, *ABFS_JARS]
    without = Settings(name="test", definitions=".", lakes={"a": "hdfs://a/b"})
    assert with_jars(without)["spark.jars.packages"].split(",") == list(DELTA_JARS)
