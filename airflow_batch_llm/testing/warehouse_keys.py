"""The contract's cases about keys."""


class KnowsKeys:
    """Cases follow."""
