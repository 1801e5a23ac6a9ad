"""Arguments that several verbs take, each declared once."""

from __future__ import annotations

import argparse
import datetime

from feature_defs.errors import UsageError, near_miss
from jobs.settings import MAIN_STORE


def add_groups(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--group", dest="groups", action="append", default=[], metavar="NAME",
        help="a feature group, may be given several times (default: all)",
    )  # fmt: skip


def add_place(parser: argparse.ArgumentParser, option: str, help_text: str) -> None:
    """The place that a verb begins with, under a name beside which another place makes sense."""
    parser.add_argument(
        option, dest="profile", required=True, metavar="PROFILE", help=f"{help_text}: the same as --profile"
    )


def add_store(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--store", default=MAIN_STORE, metavar="NAME", help="another online store of the profile than that of [online]"
    )


def add_now(parser: argparse.ArgumentParser, help_text: str) -> None:
    parser.add_argument("--now", type=moment, metavar="TIME", help=help_text)


def moment(text: str) -> datetime.datetime:
    """An ISO 8601 date or time; a naive one is UTC."""
    try:
        found = datetime.datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError as error:
        hint = "write 2026-01-31 or 2026-01-31T12:00:00Z"
        raise UsageError("Time", f"'{text}' is not ISO 8601", hint=hint) from error
    return found if found.tzinfo else found.replace(tzinfo=datetime.timezone.utc)


def key_values(pairs: list[str], known: list[str]) -> dict[str, str]:
    """`customer_id=CUST001` pairs, exactly the known names."""
    found = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
    malformed = [pair for pair in pairs if "=" not in pair]
    missing, unknown = [name for name in known if name not in found], [name for name in found if name not in known]
    if malformed or missing or unknown:
        told = [f"'{pair}' is not NAME=VALUE" for pair in malformed]
        told += [f"key '{name}' is missing" for name in missing]
        told += [f"'{name}' is not a key" for name in unknown]
        hint = (near_miss(unknown[0], known) if unknown else "") + f"write {' '.join(f'{k}=...' for k in known)}"
        raise UsageError("Option --entity", "; ".join(told), hint=hint)
    return found


def named_columns(pairs: list[str]) -> dict[str, str]:
    """`customer_id=cust_ref` pairs: an entity's key and the spine's column for it, each key once."""
    found: dict[str, str] = {}
    for pair in pairs:
        key, _, column = pair.partition("=")
        if not key or not column or key in found:
            problem = f"key '{key}' is given twice" if key in found else f"'{pair}' is not KEY=COLUMN"
            raise UsageError("Option --key", problem, hint="write --key customer_id=cust_ref, once for each key")
        found[key] = column
    return found
