"""A secret by the name that a profile gives it: `env:NAME`, or `scope:SCOPE/KEY` on Databricks."""

from __future__ import annotations

import os

from feature_defs.errors import MissingPartError, UsageError


def secret(reference: str) -> str:
    """The secret that `env:NAME` or `scope:SCOPE/KEY` names."""
    kind, _, name = reference.partition(":")
    if kind == "env":
        if name not in os.environ:
            hint = f"export {name}=..."
            raise UsageError("Profile", f"the secret's environment variable {name} is not set", hint=hint)
        return os.environ[name]
    scope, _, key = name.partition("/")
    try:
        from databricks.sdk.runtime import dbutils
    except ImportError as error:
        problem = f"secret scope '{scope}' can be read on Databricks only"
        raise MissingPartError("Secrets", problem, hint='elsewhere name it with password = "env:NAME"') from error
    return str(dbutils.secrets.get(scope=scope, key=key))
