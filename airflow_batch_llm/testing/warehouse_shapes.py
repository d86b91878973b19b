"""The contract's cases about shapes."""


class ShapesTables:
    """Cases follow."""
