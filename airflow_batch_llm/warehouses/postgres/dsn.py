"""A DSN that is read wrongly would show a piece of its password, as a host or a port, in the driver's message."""

import re

from airflow_batch_llm.errors import InputError, raise_alone

_HOST = re.compile(r"[\w.:%/,\[\]-]*")
_PORT = re.compile(r"[0-9,]*")


def refuse_malformed(dsn: str) -> None:
    """Raise `InputError` for a DSN that libpq cannot read, or whose password is taken for another part of it."""
    from psycopg import Error
    from psycopg.conninfo import conninfo_to_dict

    try:
        parts = {name: str(value or "") for name, value in conninfo_to_dict(dsn).items()}
    except Error:
        parts = {"host": "@"}
    is_read = (
        _HOST.fullmatch(parts.get("host", ""))
        and _HOST.fullmatch(parts.get("hostaddr", ""))
        and _PORT.fullmatch(parts.get("port", ""))
        and not ("://" in dsn and "@" in parts.get("dbname", ""))
    )
    if not is_read:
        raise_alone(
            InputError(
                "The DSN of PostgreSQL cannot be read. It is not shown, because it may hold a password. Write "
                "postgresql://user:password@host:port/database, with @ : / ? # % in a password as %40 %3A %2F %3F %23 %25."
            )
        )
