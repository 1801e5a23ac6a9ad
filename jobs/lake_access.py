"""How lakes elsewhere are reached, told once: by the file stores, and by Spark in Hadoop's own words.

[lakes] + [hdfs.NAME] + [adls.ACCOUNT] -> use_lakes    -> open_file_store(uri)
                                       -> hadoop_conf  -> Spark's hdfs: and abfss: file systems
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from functools import cache, partial
from typing import TypeVar
from urllib.parse import urlsplit

from connectors.adls_files import AdlsFileStore
from connectors.file_store import FileStore, parted, use_file_stores
from connectors.hdfs_files import HdfsFileStore
from feature_defs.errors import UsageError
from jobs.named_secrets import secret
from jobs.settings import AdlsSettings, HdfsSettings, Settings, listed_in

Item = TypeVar("Item")
# What Hadoop's abfs driver needs that PySpark does not bring; more that it declares is not used by it here.
ABFS_JARS = (
    "org.apache.hadoop:hadoop-azure:3.5.0",
    "org.apache.hadoop.thirdparty:hadoop-shaded-guava:1.5.0",
    "org.wildfly.openssl:wildfly-openssl:2.2.5.Final",
    "org.hdrhistogram:HdrHistogram:2.1.12",
)
_PROVIDERS = "org.apache.hadoop.fs.azurebfs.oauth2"
_FAILOVER = "org.apache.hadoop.hdfs.server.namenode.ha.ConfiguredFailoverProxyProvider"
_COMMITTER = "org.apache.hadoop.mapreduce.lib.output.FileOutputCommitterFactory"
_LOGIN = "https://login.microsoftonline.com"


def use_lakes(settings: Settings) -> None:
    """From now on the lakes of these settings can be opened by URI; a secret is read when the first file of it is."""
    use_file_stores({place: cache(opened) for place, opened in _stores(settings).items()})


def _stores(settings: Settings) -> dict[str, Callable[[], FileStore]]:
    found: dict[str, Callable[[], FileStore]] = {}
    for base in settings.lakes.values():
        place = parted(base)[0]
        if place.startswith("hdfs:"):
            found[place] = partial(_hdfs_store, settings, place)
        elif place.startswith(("abfs:", "abfss:")):
            found[place] = partial(_adls_store, settings, place)
    return found


def _hdfs_store(settings: Settings, place: str) -> FileStore:
    name = _host(place).partition(":")[0]
    found = _named(settings.hdfs, name)
    if found is None:
        hint = f'add [hdfs.{_key(name)}] webhdfs = "http://{name}:9870"'
        problem = "has no table that tells the address of its WebHDFS"
        raise UsageError(f"HDFS '{name}'", problem, hint=hint)
    urls = tuple(url.rstrip("/") for url in listed_in(found.webhdfs))
    return HdfsFileStore(name, urls, user=found.user, kerberos=found.kerberos, seconds=found.timeout_seconds)


def _adls_store(settings: Settings, place: str) -> FileStore:
    host = _host(place)
    account = host.partition(".")[0]
    found = _named(settings.adls, account)
    if found is None:
        hint = f'add [adls.{account}] auth = "identity", or key, sas or principal'
        raise UsageError(f"ADLS account '{account}'", "has no table that tells how to sign in", hint=hint)
    return AdlsFileStore(
        account,
        found.endpoint or f"https://{host}",
        auth=found.auth,
        secret=secret(found.secret) if found.secret else "",
        tenant=found.tenant,
        client=found.client,
        seconds=found.timeout_seconds,
    )


def _host(place: str) -> str:
    """`abfss://raw@acme.dfs.core.windows.net` -> the part behind the container."""
    return place.partition("://")[2].rpartition("@")[2]


def _named(tables: Mapping[str, Item], name: str) -> Item | None:
    """Hosts are the same in capital letters, and an environment variable is all of them."""
    return {key.lower(): table for key, table in tables.items()}.get(name.lower())


def _key(name: str) -> str:
    return name if re.fullmatch(r"[\w-]+", name) else f'"{name}"'


# the same for Spark


def hadoop_conf(settings: Settings) -> dict[str, str]:
    """Hadoop's settings for the lakes of a place. Secrets are among them: for a session, not to be shown."""
    found: dict[str, str] = {}
    hosts = {_host(parted(base)[0]) for base in settings.lakes.values() if base.startswith(("abfs:", "abfss:"))}
    for host in sorted(hosts):
        adls = _named(settings.adls, host.partition(".")[0])
        found |= _abfs_conf(host, adls) if adls else {}
    found |= _waiting_conf(settings.hdfs.values())
    pairs = {name: _ha_conf(name, hdfs) for name, hdfs in settings.hdfs.items() if len(listed_in(hdfs.namenodes)) > 1}
    if pairs:
        found["dfs.nameservices"] = ",".join(pairs)
    for conf in pairs.values():
        found |= conf
    return found


def hadoop_user(settings: Settings) -> str:
    """Who Spark is on HDFS: it has one name for all of them."""
    return next((hdfs.user for hdfs in settings.hdfs.values() if hdfs.user and not hdfs.kerberos), "")


def _abfs_conf(host: str, adls: AdlsSettings) -> dict[str, str]:
    def own(**values: str) -> dict[str, str]:
        return {f"fs.azure.{key.replace('__', '.')}.{host}": value for key, value in values.items()}

    known = secret(adls.secret) if adls.secret else ""
    match adls.auth:
        case "key":
            found = own(account__auth__type="SharedKey", account__key=known)
        case "sas":
            found = own(account__auth__type="SAS", sas__fixed__token=known.lstrip("?"))
        case "principal":
            found = own(
                account__auth__type="OAuth",
                account__oauth__provider__type=f"{_PROVIDERS}.ClientCredsTokenProvider",
                account__oauth2__client__endpoint=f"{_LOGIN}/{adls.tenant}/oauth2/token",
                account__oauth2__client__id=adls.client,
                account__oauth2__client__secret=known,
            )
        case _:
            found = own(
                account__auth__type="OAuth",
                account__oauth__provider__type=f"{_PROVIDERS}.MsiTokenProvider",
                **({"account__oauth2__client__id": adls.client} if adls.client else {}),
            )
    # else the driver sends the account its metrics when a process ends, and tries for ten minutes when nobody answers
    found["fs.azure.metrics.collection.enabled"] = "false"
    # the driver's own committer asks for a job's number, which Spark does not give: csv and json could not be written
    found |= {f"mapreduce.outputcommitter.factory.scheme.{scheme}": _COMMITTER for scheme in ("abfs", "abfss")}
    if adls.endpoint:
        parts = urlsplit(adls.endpoint)
        if parts.netloc != host:  # the driver then puts the account into the path, as emulators have it
            found["fs.azure.abfs.endpoint"] = parts.netloc
        if parts.scheme == "http":
            found["fs.azure.always.use.https"] = "false"
            found["fs.azure.networking.library"] = "JDK_HTTP_URL_CONNECTION"  # the usual one knows https alone
    return found


def _waiting_conf(clusters: Collection[HdfsSettings]) -> dict[str, str]:
    """That a single NameNode which starts again is waited for; Hadoop's client asks it once, and the task fails.

    The waits double, and come to `timeout_seconds`: Hadoop takes the first of them twice. It counts a NameNode in safe
    mode so, and one that refuses connections again in every try, up to eight times as long. Not beside an HA pair: the
    key is one for all HDFS, and a pair would wait for the NameNode that is down before it asks the other.
    """
    longest = max((hdfs.timeout_seconds for hdfs in clusters), default=0)
    if longest <= 0 or any(_is_pair(hdfs) for hdfs in clusters):
        return {}
    waits = (str(max(1, round(longest * 1000 / 32 * 2**number))) for number in range(5))
    return {"dfs.client.retry.policy.enabled": "true", "dfs.client.retry.policy.spec": ",1,".join(waits) + ",1"}


def _is_pair(hdfs: HdfsSettings) -> bool:
    return len(listed_in(hdfs.namenodes)) > 1 or len(listed_in(hdfs.webhdfs)) > 1


def _ha_conf(name: str, hdfs: HdfsSettings) -> dict[str, str]:
    """Where the NameNodes of a nameservice are; one NameNode is found by its URI."""
    known = {f"nn{number}": address for number, address in enumerate(listed_in(hdfs.namenodes), 1)}
    return {
        f"dfs.ha.namenodes.{name}": ",".join(known),
        f"dfs.client.failover.proxy.provider.{name}": _FAILOVER,
        **{f"dfs.namenode.rpc-address.{name}.{node}": address for node, address in known.items()},
    }
