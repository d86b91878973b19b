"""The server that a provider's contract runs against, as a Protocol: the vendor's API, and a control surface for tests.

The package's simulator is one such server. A vendor that it does not speak brings its own, in a process of its own:
the contract measures the memory of the process that it runs in.
"""

from typing import Any, Protocol


class ProviderServer(Protocol):
    """Speaks a vendor's batch API on loopback, and does what a test asks for.

    The server returns the results of a batch in another order than its requests. A batch ends at once, unless a fault
    holds it. The server stands at `url` from `start` on; after `kill` nobody listens there, until the next `start`.
    """

    @property
    def url(self) -> str:
        """The root of the vendor's API, without a path."""

    def start(self) -> object:
        """Listen, at the same URL as before."""

    def kill(self) -> None:
        """Stop at once, as a crash would."""

    def reset(self) -> None:
        """Forget batches, files, faults, knobs and the ledger. The clock may stay advanced."""

    def fault(self, **fault: Any) -> object:
        """Set a fault; the fields are below. `kind` says what happens, `provider` may be ignored.

        To a call of an `endpoint` (upload, create, retrieve, list, cancel, the download's name, or any): "drop", "status"
        (`status`, `code`, `retry_after`), "delay" (`seconds`), "body" (`text`, `content_type`), "bomb" (`bytes` of one
        letter as gzip), "cut" (the answer breaks off after so many `lines`). It strikes the `nth` such call (default: the
        first) and `times` calls (default 1; None: all), before or after the call takes `effect` (default "before").

        To the next batch: "hold" (it runs until a test ends it), "expire" (its window closes; `share` of its rows ran).

        To `rows` by position, or to `every` n-th row, of the next batch: the keys of `ReadsAnswers.outcomes`, "missing",
        "bad_line" (the line is no JSON), "duplicated" (the line comes twice), "odd" (the answer holds U+2028).
        """

    def clear_faults(self) -> None:
        """Forget the faults of calls and of batches to come."""

    def turn(self, **knobs: Any) -> object:
        """Set `list_lag` (seconds until a batch is listed) or `cancelled_share` (of rows that ran before a cancel).

        `cached_tokens`, `cache_write_tokens` and `reasoning_tokens` are what each answer reports. A server leaves out a
        kind of token that its vendor does not report.
        """

    def clock(self, *, advance_seconds: float = 0.0, settle: bool = False) -> float:
        """Advance the server's clock, and with `settle` wait until every batch is where it should be by then."""

    def batch(self, batch_id: str, action: str) -> object:
        """End a batch that is held: the action is "end"."""

    def ledger(self) -> dict[str, Any]:
        """Return the books, by provider name.

        `batches`: the ids of all batches. `calls`: how often each endpoint was called, also where a fault struck. `rows`:
        {"charged": n}. `tokens`: the sums of "input", "output", "cached" and "reasoning" over all charged rows.
        """
