"""Print for people: counts with their nouns, and text without control characters."""


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


def printable(text: str) -> str:
    """Return the text with each invisible character except the line end in the form that JSON escapes it to."""
    return "".join(char if char == "\n" or char.isprintable() else _escaped(char) for char in text)


def _escaped(char: str) -> str:
    units = char.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[place : place + 2].hex()}" for place in range(0, len(units), 2))
