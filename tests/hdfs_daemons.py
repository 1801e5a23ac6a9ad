"""A real HDFS on loopback for the tests: a NameNode and DataNodes, each a process of its own that can be killed."""

from __future__ import annotations

import json
import subprocess
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

import pyspark

from jobs.session import check_java
from tests.fetched import maven_jar
from tests.waiting import free_port, until

_MINICLUSTER = "org.apache.hadoop:hadoop-client-minicluster:3.5.0"
_SHA256 = "06772d24529e59939915979b3edba204d367750ef7dc5120411f35221dd4818c"
_START_SECONDS = 180.0  # of a machine that is busy
_JAVA = [
    *("-Xmx192m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto"),
    *("-Dhadoop.root.logger=INFO,console", "--add-opens=java.base/java.lang=ALL-UNNAMED"),
]
_LOG4J = """\
log4j.rootLogger=WARN,console
log4j.appender.console=org.apache.log4j.ConsoleAppender
log4j.appender.console.target=System.err
log4j.appender.console.layout=org.apache.log4j.PatternLayout
log4j.appender.console.layout.ConversionPattern=%d{ISO8601} %p %c{2}: %m%n
"""


@dataclass
class Hdfs:
    """Every daemon keeps its folder and, but for DataNodes, its ports when it is started again."""

    folder: Path
    data_nodes: int = 2
    rpc: int = field(default_factory=free_port)
    http: int = field(default_factory=free_port)
    _running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def uri(self) -> str:
        return f"hdfs://localhost:{self.rpc}"

    @property
    def webhdfs(self) -> str:
        return f"http://localhost:{self.http}"

    def start(self) -> None:
        check_java()
        self._configure()
        formatting = self._run("format", "namenode.NameNode", "-format", "-nonInteractive", "-force")
        for number in range(self.data_nodes):  # they wait for the NameNode
            self.start_data_node(number)
        formatting.wait(_START_SECONDS)
        self.start_name_node()
        self.wait()

    def stop(self) -> None:
        for name in list(self._running):
            self.kill(name)

    def kill(self, name: str) -> None:
        """`name` or `data0`, at once and without a word to the others."""
        process = self._running.pop(name)
        process.kill()
        process.wait()

    def heal(self) -> None:
        """Start again what was killed."""
        if "name" not in self._running:
            self.start_name_node()
        for number in range(self.data_nodes):
            if f"data{number}" not in self._running:
                self.start_data_node(number)
        self.wait()

    def start_name_node(self) -> None:
        self._running["name"] = self._run("name", "namenode.NameNode")

    def start_data_node(self, number: int) -> None:
        own = {
            "dfs.datanode.data.dir": f"file://{self.folder}/data{number}",
            "dfs.datanode.hostname": "127.0.0.1",
            **{f"dfs.datanode.{kind}address": "127.0.0.1:0" for kind in ("", "http.", "ipc.")},
        }
        options = [part for key, value in own.items() for part in ("-D", f"{key}={value}")]
        self._running[f"data{number}"] = self._run(f"data{number}", "datanode.DataNode", *options)

    def wait(self, data_nodes: int | None = None) -> None:
        """Until so many DataNodes are known, by default all, and files can be written."""
        wanted = self.data_nodes if data_nodes is None else data_nodes

        def holds() -> bool:
            for name, process in self._running.items():
                assert process.poll() is None, f"HDFS {name} ended:\n{self.log(name)}"
            state = self.state()
            return (state["NumLiveDataNodes"], state["FSState"]) == (wanted, "Operational")

        until(holds, _START_SECONDS, every=0.1)

    def state(self) -> dict[str, object]:
        query = "jmx?qry=Hadoop:service=NameNode,name=FSNamesystemState"
        with urllib.request.urlopen(f"{self.webhdfs}/{query}", timeout=5) as answer:
            return dict(json.load(answer)["beans"][0])

    def log(self, name: str) -> str:
        return "\n".join((self.folder / f"{name}.log").read_text(errors="replace").splitlines()[-15:])

    def _run(self, name: str, main: str, *options: str) -> subprocess.Popen[bytes]:
        jars = [self.folder / "conf", maven_jar(_MINICLUSTER, _SHA256), Path(pyspark.__file__).parent / "jars" / "*"]
        classpath = ":".join(map(str, jars))
        home = f"-Dhadoop.home.dir={self.folder}"
        command = ["java", *_JAVA, home, "-cp", classpath, f"org.apache.hadoop.hdfs.server.{main}", *options]
        with (self.folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def _configure(self) -> None:
        conf = self.folder / "conf"
        conf.mkdir(parents=True)
        site = {
            "dfs.replication": min(self.data_nodes, 3),
            "dfs.namenode.name.dir": f"file://{self.folder}/name",
            "dfs.namenode.rpc-address": f"localhost:{self.rpc}",
            "dfs.namenode.http-address": f"localhost:{self.http}",
            "dfs.namenode.safemode.extension": 0,
            "dfs.namenode.safemode.min.datanodes": 1,
            "dfs.heartbeat.interval": 1,
            "dfs.namenode.heartbeat.recheck-interval": 1000,  # a DataNode is dead after 12 seconds, not ten minutes
            "dfs.namenode.datanode.registration.ip-hostname-check": "false",
            "dfs.namenode.handler.count": 4,
        }
        core = {"fs.defaultFS": self.uri, "hadoop.tmp.dir": f"{self.folder}/tmp"}
        for name, values in (("core-site.xml", core), ("hdfs-site.xml", site)):
            items = (f"<property><name>{key}</name><value>{value}</value></property>" for key, value in values.items())
            (conf / name).write_text(f"<configuration>{''.join(items)}</configuration>")
        (conf / "log4j.properties").write_text(_LOG4J)
