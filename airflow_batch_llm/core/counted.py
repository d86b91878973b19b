"""Numbers with their noun, as people read them: 1 batch, 2 batches, 1,000 rows."""


def counted(count: int, noun: str) -> str:
    """Return a count with its noun, which is given in the singular."""
    return f"{count:,} {noun if count == 1 else plural(noun)}"


def share(part: int, whole: int, noun: str) -> str:
    """Return one count out of another: 1 of 2 batches."""
    return f"{part:,} of {counted(whole, noun)}"


def plural(noun: str) -> str:
    """Return the plural of a regular noun."""
    return noun + ("es" if noun.endswith(("ch", "s", "x")) else "s")


def verb(count: int, singular: str, many: str) -> str:
    """Return the form of a verb that agrees with a count."""
    return singular if count == 1 else many
