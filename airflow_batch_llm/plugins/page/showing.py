"""Show values on the page: templates, the forms of numbers and times, and the geometry of charts.

Every value is escaped. A chart has units of its own. Templates draw it, and the style sheet colours it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import cache
from importlib.resources import files
from typing import Any

from fastapi import Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, StrictUndefined

from airflow_batch_llm.core.printing import counted, printable
from airflow_batch_llm.links import PREFIX
from airflow_batch_llm.stage.inspection import Inspected, InspectedShard, ShardState

#: Own files and nothing else, in a frame of Airflow's own pages only.
_POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self';"
    " frame-ancestors 'self'; base-uri 'none'; form-action 'self'"
)
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": _POLICY,
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}
_MEDIA_TYPES = {"css": "text/css", "js": "text/javascript"}


def root(request: Request) -> str:
    """Return the path below which this page is served."""
    return str(request.scope.get("root_path", PREFIX))


def page(request: Request, name: str, status: int = 200, **values: Any) -> HTMLResponse:
    """Answer with a page."""
    below = root(request)
    text = _environment().get_template(name).render(root=below, airflow=below.removesuffix(PREFIX), **values)
    return HTMLResponse(text, status_code=status, headers=_HEADERS)


def own_page(text: str) -> HTMLResponse:
    """Answer with a page that brings its styles along, and no script."""
    policy = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'self'; base-uri 'none'; form-action 'none'"
    return HTMLResponse(text, headers={**_HEADERS, "Content-Security-Policy": policy})


def static_file(name: str) -> tuple[bytes, str] | None:
    """Return one of the page's own files with its media type. None: there is none of this name."""
    kind = _MEDIA_TYPES.get(name.rpartition(".")[2])
    folder = files(__package__) / "static"
    if kind is None or name not in {one.name for one in folder.iterdir()}:
        return None
    return (folder / name).read_bytes(), kind


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader(__package__, "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    environment.filters.update(
        count=lambda number: f"{number:,}",
        counted=counted,
        dollars=dollars,
        duration=duration,
        moment=moment,
        percent=percent,
    )
    return environment


def _shown(value: Any) -> Any:
    """Make control characters of names visible."""
    return printable(value) if type(value) is str else value


def dollars(amount: float | None) -> str:
    """Return an amount, to the cent where it has cents."""
    if amount is None:
        return "–"
    return f"${amount:,.2f}" if amount >= 1 or not amount else f"${amount:,.4f}"


def moment(seconds: float | None) -> str:
    """Return a time in UTC."""
    return "–" if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")


def duration(seconds: float | None) -> str:
    """Return a span in its two largest units."""
    if seconds is None:
        return "–"
    minutes, rest = divmod(int(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 24:
        return f"{hours // 24} d {hours % 24} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def percent(part: float, whole: float) -> int:
    """Return the share in whole percent: 100 only if nothing is missing."""
    return 0 if whole <= 0 else max(0, min(100, int(100 * part / whole)))


#: The width of every chart.
WIDTH = 1000.0
_ROW = 14
_TOP = 22
_MOST_SHARDS = 200


@dataclass(frozen=True, slots=True)
class Bar:
    """A rectangle, with the class that colours it and the words for it."""

    x: float
    y: float
    width: float
    height: float
    kind: str
    title: str


@dataclass(frozen=True, slots=True)
class Tick:
    """A mark on an axis, with its words."""

    at: float
    words: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """Place what is drawn, and say how high it is."""

    height: float
    bars: tuple[Bar, ...]
    ticks: tuple[Tick, ...]
    left_out: int = 0
    """Parts that are not drawn. Default: all are."""


def timeline(run: Inspected, now: float) -> Chart:
    """Draw a line for each shard: how long it waited, was at the provider, and took to land."""
    shown = run.shards[:_MOST_SHARDS]
    times = [one for shard in shown for one in (shard.batch_at, shard.ended_at, shard.landed_at) if one]
    begin = run.planned_at
    is_open = any(shard.state not in _OVER for shard in shown) and run.verdict is None
    end = max([*times, begin + 1.0, *([now] if is_open else [])])
    scale = WIDTH / (end - begin)
    bars: list[Bar] = []
    begins = _begins(run)
    for line, shard in enumerate(shown):
        for since, until, kind, words in _stretches(shard, begins[shard.round], end):
            x = (since - begin) * scale
            width = max(2.0, (until - since) * scale)
            title = (
                f"round {shard.round} shard {shard.number}: {words} from {_clock(since)} to {_clock(until)}"
            )
            bars.append(Bar(min(x, WIDTH - width), _TOP + line * _ROW, width, _ROW - 4, kind, title))
    ticks = tuple(Tick(at * scale, _clock(begin + at)) for at in _steps(end - begin))
    height = _TOP + len(shown) * _ROW
    return Chart(height=height, bars=tuple(bars), ticks=ticks, left_out=len(run.shards) - len(shown))


_OVER = {ShardState.STAGED, ShardState.MERGED, ShardState.REFUSED}


def _begins(run: Inspected) -> dict[int, float]:
    """Return when each round began: once all shards of the one before had landed."""
    begins = {1: run.planned_at}
    for shard in run.shards:
        following = shard.round + 1
        begins[following] = max(begins.get(following, 0.0), shard.landed_at or run.planned_at)
    return begins


def _stretches(shard: InspectedShard, begin: float, end: float) -> list[tuple[float, float, str, str]]:
    """Return the stretches of a shard's life: waiting, at the provider, landing."""
    sent = shard.batch_at or shard.landed_at or end
    found = [(begin, sent, "waiting", "waited")]
    if shard.batch_at is not None:
        over = shard.ended_at or shard.landed_at or end
        kind = "cancelled" if shard.cancelled else "running" if shard.ended_at is None else "done"
        found.append((shard.batch_at, over, kind, f"batch {shard.batch_id} ran"))
    if shard.ended_at is not None:
        found.append((shard.ended_at, shard.landed_at or end, "landing", "landed"))
    elif shard.state is ShardState.REFUSED:
        found.append((sent, end, "refused", "the provider did not take it"))
    return found


def days(amounts: Mapping[date, float], first: date, last: date, height: float = 180.0) -> Chart:
    """Draw a bar for each day."""
    span = (last - first).days + 1
    most = max(amounts.values(), default=0.0) or 1.0
    step = WIDTH / span
    bars = []
    for number in range(span):
        day = first + timedelta(days=number)
        amount = amounts.get(day, 0.0)
        if amount > 0:
            tall = max(1.0, height * amount / most)
            bars.append(
                Bar(
                    number * step + step * 0.1,
                    height - tall,
                    step * 0.8,
                    tall,
                    "spend",
                    f"{day}: ${amount:,.4f}",
                )
            )
    every = max(1, span // 6)
    ticks = [
        Tick((number + 0.5) * step, f"{first + timedelta(days=number):%d %b}")
        for number in range(0, span, every)
    ]
    return Chart(height=height, bars=tuple(bars), ticks=tuple(ticks))


def shares(amounts: Sequence[tuple[str, float]]) -> list[tuple[str, float, float]]:
    """Return each amount with its percent of the largest one."""
    most = max((amount for _, amount in amounts), default=0.0) or 1.0
    return [(name, amount, round(100 * amount / most, 1)) for name, amount in amounts]


def _steps(span: float) -> list[float]:
    """Return five moments of a span."""
    return [span * part / 5 for part in range(5)]


def _clock(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%d %b %H:%M:%S")
