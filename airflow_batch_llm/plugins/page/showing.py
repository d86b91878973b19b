"""Templates, and the forms of numbers and times in them. Every value is escaped."""

from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from typing import Any

from fastapi import Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, StrictUndefined

from airflow_batch_llm.core.printing import counted, printable
from airflow_batch_llm.links import PREFIX

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
