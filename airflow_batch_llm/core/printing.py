"""Texts of vendors and rows as a terminal may have them: it would obey the control characters in them."""


def printable(text: str) -> str:
    """The text with every character that does not show, but for the line end, as JSON escapes it."""
    return "".join(char if char == "\n" or char.isprintable() else _escaped(char) for char in text)


def _escaped(char: str) -> str:
    units = char.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[place : place + 2].hex()}" for place in range(0, len(units), 2))
