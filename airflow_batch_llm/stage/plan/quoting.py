"""Price the requests of a route before they are sent, and share a budget out among routes."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from airflow_batch_llm.core.attachment import AttachmentRules, AttachmentTokens, parted
from airflow_batch_llm.core.caching import CachedRun
from airflow_batch_llm.core.estimate import (
    Estimate,
    Measured,
    RequestSize,
    estimate,
    of_items,
    usual_packed_answer,
)
from airflow_batch_llm.core.model import Way
from airflow_batch_llm.core.output_type import OutputType
from airflow_batch_llm.core.printing import counted, verb
from airflow_batch_llm.errors import BudgetExceeded, ProviderError
from airflow_batch_llm.providers.base import Provider
from airflow_batch_llm.stage.plan.resolved import ResolvedRoute
from airflow_batch_llm.stage.plan.shard_files import packed_prompts
from airflow_batch_llm.warehouses.arrow import binary_array

#: The provider counts this many prompts, spread over all of them.
SAMPLE = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Quote:
    """Makes the estimate of a run."""

    provider: Provider | None
    """The provider that counts tokens. None: tokens are not counted, and the estimate rests on bytes."""
    output_type: OutputType
    route: ResolvedRoute
    way: Way
    measured: Measured | None = None
    """Earlier runs with the same spec. Default: there are none."""
    cached: CachedRun | None = None
    """The use that they made of the vendor's cache. Default: not known, so none."""

    def estimate(self, prompts: Iterable[pa.BinaryArray], items: int) -> Estimate:
        """Read the prompts once, block by block; ask the provider about a few requests.

        The estimate is that of the items: a request's cost is divided among those that share it.
        """
        rows = self.route.rows_per_request
        total = largest = seen = 0
        attached = AttachmentTokens()
        sample: list[bytes] = []
        every = max(1, items // rows // SAMPLE)
        for block, _ in packed_prompts(prompts, rows):
            if self.route.attachments is not None:
                block, attached = _apart(block, attached, self.route.attachments)
            lengths = pc.binary_length(block)
            total += pc.sum(lengths).as_py() or 0
            largest = max(largest, pc.max(lengths).as_py() or 0)
            sample += [block[at].as_py() for at in range(-seen % every, len(block), every)]
            seen += len(block)
        del sample[SAMPLE:]
        return self.of_size(
            RequestSize(requests=seen, prompt_bytes=total, largest_bytes=largest, attached=attached),
            items,
            sample,
        )

    def of_size(self, known: RequestSize, items: int, sample: list[bytes]) -> Estimate:
        """Estimate requests of this size. The sample are prompts of some of them."""
        rows, seen = self.route.rows_per_request, known.requests
        size = replace(
            known,
            packed=items if rows > 1 else 0,
            rows_per_request=rows,
            sample=self._counted(sample) if self.measured is None else (),
            measured=self.measured,
            cached=None if self.cached is None else self.cached.among(seen),
            shared_bytes=len(self.route.template.pieces[0]) + len(self.route.call.system_prompt or ""),
            attached_assumption=self.route.attachments.assumption if self.route.attachments else "",
            max_tokens=self.route.asked.max_tokens,
            answer_tokens=usual_packed_answer(
                self.output_type, items / seen if seen else 0.0, is_packed=rows > 1
            ),
        )
        return of_items(estimate(self.route.prices.by(self.way), size), items)

    def _counted(self, sample: list[bytes]) -> list[tuple[int, int]]:
        """Counting is a courtesy: where it fails, the estimate rests on bytes and says so."""
        if not sample or self.provider is None:
            return []
        try:
            counts = self.provider.count_tokens(self.route.asked, [orjson.loads(prompt) for prompt in sample])
        except ProviderError:
            return []
        return [(len(prompt), count) for prompt, count in zip(sample, counts or (), strict=False)]


def _apart(
    block: pa.BinaryArray, attached: AttachmentTokens, rules: AttachmentRules
) -> tuple[pa.BinaryArray, AttachmentTokens]:
    """Return the prompts without their attachments, and the tokens with those of their attachments."""
    texts = []
    for prompt in block:
        text, attachments = parted(prompt.as_py())
        texts.append(orjson.dumps(text))
        attached = attached.plus(attachments, rules)
    return binary_array(texts), attached


def affordable(guess: Estimate, most: float | None) -> int:
    """Return the number of requests, in source order, that the budget allows."""
    if most is None or math.isinf(most) or not guess.requests:
        return guess.requests
    if guess.per_request is None:
        raise BudgetExceeded(
            f"The cost cannot be estimated, so max_cost_usd={most:g} cannot be kept. {' '.join(guess.assumptions)}"
            " Or allow any cost with max_cost_usd=float('inf'), in a spec file null. Nothing was sent."
        )
    if not guess.per_request:
        return guess.requests
    return min(guess.requests, int(Decimal(str(most)) / guess.per_request))


def shared_out(guesses: Sequence[Estimate], most: float | None, caps: Sequence[float | None]) -> list[int]:
    """Return the number of requests of each route that the budget allows. The stage's own route, the first, comes last."""
    allowed = [0] * len(guesses)
    left = None if most is None or math.isinf(most) else Decimal(str(most))
    for number in (*range(1, len(guesses)), 0):
        limits = [float(one) for one in (left, caps[number]) if one is not None]
        allowed[number] = affordable(guesses[number], min(limits, default=None))
        if left is not None:
            left = max(Decimal(0), left - allowed[number] * (guesses[number].per_request or 0))
    return allowed


def over_budget(
    routes: Sequence[ResolvedRoute], guesses: Sequence[Estimate], surcharge: Decimal, what: str
) -> str:
    """Say which budget is too small: that of a route, or that of the run, whose name is `what`."""
    requests, whose = sum(guess.requests for guess in guesses), ""
    expected = sum((guess.expected or Decimal(0) for guess in guesses), surcharge)
    for route, guess in zip(routes, guesses, strict=True):
        if shared_out([guess], route.max_cost_usd, [None]) != [guess.requests]:
            requests, expected = guess.requests, guess.expected or Decimal(0)
            whose = f" of the route {route.name}"
            what = f"the route's max_cost_usd={route.max_cost_usd:g}"
            break
    noun = "item" if routes[0].rows_per_request > 1 else "request"
    return (
        f"{counted(requests, noun)}{whose} {verb(requests, 'is', 'are')} estimated at ${expected:,.4f}, above"
        f" {what}. Nothing was sent. Raise max_cost_usd or the budget, lower max_rows, or set"
        " on_over_budget='partial' to send what fits."
    )
