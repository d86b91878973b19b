"""Say where a table is, in words that are the same for every connection that leads to it.

Places are compared, stored in plans and hashed into registers, so they hold no part of a connection that is secret or
that changes while the table stays: no user, no password, no options.
"""

import hashlib
import re
from dataclasses import dataclass

#: In a URI, everything from here on is a connection's options.
_OPTIONS = re.compile(r"[?;#].*", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One table of one database."""

    database: str
    """URI of the database, such as ``postgres://warehouse:5432/support``."""
    table: str
    """Full name of the table in its database, such as ``public.labels``."""

    @classmethod
    def of(cls, uri: str, *parts: str) -> "Place":
        """Return the place of a table by its database's URI and the parts of its name. Empty parts are left out."""
        return cls(database=_without_credentials(uri), table=".".join(filter(None, parts)))

    def __str__(self) -> str:
        return f"{self.table} in {self.database}"


def _without_credentials(uri: str) -> str:
    scheme, separator, rest = uri.partition("://")
    plain = _OPTIONS.sub("", rest)
    if "@" in rest[len(plain) :]:  # either may be a password's: it cannot be told where the host is
        return f"{scheme}{separator}{hashlib.blake2b(rest.encode(), digest_size=8).hexdigest()}"
    # A password may hold a slash, so everything before the last @ goes.
    authority, slash, path = plain.rpartition("@")[2].partition("/")
    return f"{scheme}{separator}{authority.lower()}{slash}{path}".rstrip("/")
