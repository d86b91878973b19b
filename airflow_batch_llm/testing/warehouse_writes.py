"""The contract's cases about writes."""


class MergesAnswers:
    """Cases follow."""
