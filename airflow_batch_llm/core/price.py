"""Price a request as it is asked, and in real time for comparison.

The price list of genai-prices falls back to the full price, silently, where it has no batch price for a model, a
kind of token or a date. So each price is taken by itself, and every assumed price is reported.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from decimal import Decimal
from difflib import get_close_matches
from typing import Any, NamedTuple

from airflow_batch_llm.core.model import Usage, Way
from airflow_batch_llm.errors import InputError

#: Names that are as near to each other as this may be one name, mistyped. Between 0 and 1.
_SIMILAR = 0.8

_HALF = Decimal("0.5")
_PER_MILLION = Decimal("0.000001")
_OVERRIDE_KEYS = frozenset({"input", "output", "cached", "cache_write", "batch_discount"})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Terms:
    """The place of a provider's prices in the list, and their peculiarities."""

    vendor: str
    cached_is_discounted: bool = True  # False: the cache discount takes precedence over the batch discount
    cache_write: str = "cache_write_mtok"


#: The conditions by which the list marks the prices of a batch and of the flex tier.
_IN_BATCH, _IN_FLEX = {"processing": "batch"}, {"service_tier": "flex"}

#: Providers that are not simply in the list under their own name.
_TERMS: Mapping[str, _Terms] = {
    # The cached system prompt is asked to be kept for an hour, the only time that a batch profits from.
    "anthropic": _Terms(vendor="anthropic", cache_write="cache_write_1h_mtok"),
    "vertex": _Terms(vendor="google", cached_is_discounted=False),
}


class Priced(NamedTuple):
    """Dollars for one request."""

    cost: Decimal
    realtime: Decimal
    uncached: Decimal
    """The same as `cost`, if the vendor had neither read nor written a cache."""


class Tariff(NamedTuple):
    """Dollars per million tokens for requests with more input tokens than this."""

    above: int
    input: Decimal
    cached: Decimal
    output: Decimal

    @property
    def prices(self) -> tuple[Decimal, Decimal, Decimal]:
        """Those of input, of input that was read from a cache, and of output."""
        return self.input, self.cached, self.output


class CacheFactors(NamedTuple):
    """Prices of input tokens that are written to a cache, or read from it, as multiples of the price without a cache."""

    write: float
    read: float

    @property
    def break_even(self) -> float:
        """Return the share of hits above which caching wins money. 1 or more: it never does."""
        return 1.0 if self.read >= 1 else max(0.0, (self.write - 1) / (self.write - self.read))


@dataclass(frozen=True, slots=True)
class _Rate:
    """Dollars per million tokens; a long request pays the rate of its tier for all of them."""

    base: Decimal
    tiers: tuple[tuple[int, Decimal], ...] = ()  # (above this many input tokens, the price), longest first

    def at(self, input_tokens: int) -> Decimal:
        for start, price in self.tiers:
            if input_tokens > start:
                return price
        return self.base

    def times(self, factor: Decimal) -> "_Rate":
        return _Rate(self.base * factor, tuple((start, price * factor) for start, price in self.tiers))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rates:
    """One price for each kind of token."""

    input: _Rate
    cached: _Rate
    cache_write: _Rate
    output: _Rate

    def cost(self, usage: Usage) -> Decimal:
        length = usage.input_tokens
        fresh = max(0, length - usage.cached_tokens - usage.cache_write_tokens)
        micro = self.input.at(length) * fresh + self.output.at(length) * usage.output_tokens
        if usage.cached_tokens:
            micro += self.cached.at(length) * usage.cached_tokens
        if usage.cache_write_tokens:
            micro += self.cache_write.at(length) * usage.cache_write_tokens
        return micro * _PER_MILLION

    def rates(self) -> Iterator[_Rate]:
        yield from (self.input, self.cached, self.cache_write, self.output)


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceList:
    """The prices of one model on one day, by the ways to ask it."""

    model: str
    way: Way = Way.BATCH
    """The way that is priced. Default: in batches."""
    similar: str | None = None
    """A model of the same provider whose name is nearly the same. None if the model is known, or no name is."""
    _rates: Mapping[Way, _Rates] = field(default_factory=dict)
    _assumed: Mapping[Way, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        provider: str,
        model: str,
        overrides: Mapping[str, Mapping[str, Any]] | None = None,
        *,
        at: float,
    ) -> "PriceList":
        """The prices at a time (seconds since the epoch). `overrides` by model, in dollars per million tokens."""
        terms = _TERMS.get(provider, _Terms(vendor=provider))
        given = (overrides or {}).get(f"{provider}:{model}", (overrides or {}).get(model))
        if given is not None:
            return _overridden(model, given, terms)
        return _listed(model, terms, datetime.fromtimestamp(at, UTC))

    @property
    def known(self) -> bool:
        """Return whether a price is known at all."""
        return bool(self._rates)

    @property
    def assumed(self) -> str | None:
        """Say for people which prices are assumed. Returns None if all are known."""
        return self._assumed.get(self.way)

    @property
    def tiers(self) -> tuple[int, ...]:
        """The lengths, in input tokens, above which a request pays more."""
        rates = self._rates[self.way].rates() if self._rates else ()
        return tuple(sorted({start for rate in rates for start, _ in rate.tiers}))

    @property
    def tariffs(self) -> tuple[Tariff, ...]:
        """The prices of tokens, those of the longest requests first. Empty if they are not known."""
        rates = self._rates.get(self.way)
        if rates is None:
            return ()
        starts = (*reversed(self.tiers), -1)
        return tuple(
            Tariff(start, rates.input.at(start + 1), rates.cached.at(start + 1), rates.output.at(start + 1))
            for start in starts
        )

    def cost(self, usage: Usage) -> Decimal | None:
        """Return the dollars for one request, or None if no price is known. Its tier follows from its own length."""
        return self._rates[self.way].cost(usage) if self._rates else None

    def list_cost(self, usage: Usage) -> Decimal | None:
        """Return the dollars for the same request in real time."""
        return self._rates[Way.NOW].cost(usage) if self._rates else None

    def by(self, way: Way) -> "PriceList":
        """Return the prices of asking this way."""
        return replace(self, way=way)

    def priced(self, usage: Usage) -> Priced | None:
        """Return all of them, or None if no price is known."""
        cost, realtime = self.cost(usage), self.list_cost(usage)
        if cost is None or realtime is None:
            return None
        uncached = None
        if usage.cached_tokens or usage.cache_write_tokens:
            uncached = self.cost(usage._replace(cached_tokens=0, cache_write_tokens=0))
        return Priced(cost, realtime, cost if uncached is None else uncached)

    @property
    def cache_factors(self) -> CacheFactors | None:
        """Return the factors of the input price with caching, for a short request. Returns None if no price is known."""
        rates = self._rates.get(self.way)
        if rates is None or not rates.input.base:
            return None
        base = rates.input.base
        return CacheFactors(float(rates.cache_write.base / base), float(rates.cached.base / base))


def _overridden(model: str, given: Mapping[str, Any], terms: _Terms) -> PriceList:
    if unknown := given.keys() - _OVERRIDE_KEYS:
        raise InputError(
            f"The price of {model} has the unknown fields {', '.join(sorted(unknown))}. A price has: input, output, "
            "cached, cache_write (dollars per million tokens) and batch_discount (0.5 is half off)."
        )
    prices = {name: _amount(model, name, value) for name, value in given.items()}
    if "input" not in prices:
        raise InputError(f"The price of {model} lacks 'input', in dollars per million tokens.")
    discount = prices.get("batch_discount", _HALF)
    if discount > 1:
        raise InputError(
            f"The batch_discount of {model} is {discount}; it lies between 0 and 1, and 0.5 is half off."
        )
    realtime = _Rates(
        input=_Rate(prices["input"]),
        cached=_Rate(prices.get("cached", prices["input"])),
        cache_write=_Rate(prices.get("cache_write", prices["input"])),
        output=_Rate(prices.get("output", Decimal(0))),
    )
    factor = 1 - discount
    keeps_list_price = "cached" in prices and not terms.cached_is_discounted
    batch = _Rates(
        input=realtime.input.times(factor),
        cached=realtime.cached if keeps_list_price else realtime.cached.times(factor),
        cache_write=realtime.cache_write.times(factor),
        output=realtime.output.times(factor),
    )
    return PriceList(model=model, _rates={Way.BATCH: batch, Way.FLEX: batch, Way.NOW: realtime})


def _amount(model: str, name: str, value: object) -> Decimal:
    try:
        amount = Decimal(str(value))
    except ArithmeticError:
        amount = Decimal("NaN")
    if not amount.is_finite() or amount < 0:
        raise InputError(f"The price of {model} has {name}={value!r}, which is not an amount.")
    return amount


def _listed(model: str, terms: _Terms, day: datetime) -> PriceList:
    from genai_prices.data_snapshot import get_snapshot

    name = model.rsplit("/", 1)[-1]  # Vertex also takes publishers/google/models/<name>
    try:
        _, info = get_snapshot().find_provider_model(name, None, terms.vendor, None)
    except LookupError:
        return PriceList(model=model, similar=_similar(name, terms.vendor))
    listed = _prices(info.get_prices(day))
    if "input_mtok" not in listed:
        return PriceList(model=model)
    in_batch, in_flex = (_variant(info, day, when) for when in (_IN_BATCH, _IN_FLEX))
    return _assembled(model, terms, listed, in_batch, in_flex)


def _variant(info: Any, day: datetime, when: Mapping[str, str]) -> dict[str, _Rate]:
    """Return the prices of a model for requests of this kind, as far as the list has them."""
    found: dict[str, _Rate] = {}
    for variant in info.price_variants or ():
        if variant.when == when and (variant.constraint is None or variant.constraint.active(day)):
            found = _prices(variant.prices) | found
    return found


def _similar(name: str, vendor: str) -> str | None:
    from genai_prices.data_snapshot import get_snapshot

    listed = [
        model.id
        for provider in get_snapshot().providers
        if provider.id == vendor
        for model in provider.models
    ]
    close = get_close_matches(name, listed, n=1, cutoff=_SIMILAR)
    return close[0] if close else None


def _prices(model_price: Any) -> dict[str, _Rate]:
    """Return the prices of a list entry by their names there."""
    found = {}
    for key, value in vars(model_price).items():
        if isinstance(value, Decimal):
            found[key] = _Rate(value)
        elif value is not None and hasattr(value, "tiers"):
            tiers = sorted(((tier.start, tier.price) for tier in value.tiers), reverse=True)
            found[key] = _Rate(value.base, tuple(tiers))
    return found


def _assembled(
    model: str,
    terms: _Terms,
    listed: dict[str, _Rate],
    in_batch: dict[str, _Rate],
    in_flex: dict[str, _Rate],
) -> PriceList:
    """Return a price for each kind of token: the batch price, or half the list price, which is then reported as assumed.

    The flex tier costs as much as a batch, where the list has no price of it.
    """
    halved: list[str] = []

    def batch(key: str, fallback: _Rate) -> _Rate:
        if key in in_batch:
            return in_batch[key]
        if key not in listed:
            return fallback
        halved.append(key.removesuffix("_mtok").replace("_", " "))
        return listed[key].times(_HALF)

    free = _Rate(Decimal(0))
    batch_input = batch("input_mtok", free)
    cached_as_listed = "cache_read_mtok" in listed and not terms.cached_is_discounted
    rates = _Rates(
        input=batch_input,
        cached=listed["cache_read_mtok"] if cached_as_listed else batch("cache_read_mtok", batch_input),
        cache_write=batch(terms.cache_write, batch_input),
        output=batch("output_mtok", free),
    )
    realtime = _Rates(
        input=listed["input_mtok"],
        cached=listed.get("cache_read_mtok", listed["input_mtok"]),
        cache_write=listed.get(terms.cache_write, listed["input_mtok"]),
        output=listed.get("output_mtok", free),
    )
    flex = _Rates(
        input=in_flex.get("input_mtok", rates.input),
        cached=in_flex.get("cache_read_mtok", rates.cached),
        cache_write=in_flex.get(terms.cache_write, rates.cache_write),
        output=in_flex.get("output_mtok", rates.output),
    )
    return PriceList(
        model=model,
        _rates={Way.BATCH: rates, Way.FLEX: flex, Way.NOW: realtime},
        _assumed=_said(model, halved, in_flex),
    )


def _said(model: str, halved: list[str], in_flex: Mapping[str, _Rate]) -> dict[Way, str]:
    """Say which prices are assumed, by the way to ask."""
    said = {}
    if halved:
        tokens = "" if "input" in halved else f" for {' and '.join(halved)} tokens"
        said[Way.BATCH] = f"No batch price of {model} is known{tokens}: half of the list price is assumed."
    if not in_flex:
        said[Way.FLEX] = f"No flex price of {model} is known: the price in a batch is assumed."
    return said
