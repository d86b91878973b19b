"""The contract's cases about processes."""


class SharesWithProcesses:
    """Cases follow."""
