"""Files of reviews that arrive, for the Dag that waits for them."""

import json
from pathlib import Path

_REVIEWS = (
    "Arrived in two days, works as described. The manual is only in Danish, though.",
    "Lovely colour! The lid does not close\u2026 sent it back.",
    'Third one I buy. "Never change a winning team", as they say 🏆',
    "",
)


def write_reviews(inbox: Path, count: int) -> None:
    """Let a file of reviews arrive."""
    inbox.mkdir(parents=True, exist_ok=True)
    rows = [{"review_id": number, "text": _REVIEWS[number % len(_REVIEWS)]} for number in range(1, count + 1)]
    (inbox / "reviews.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
