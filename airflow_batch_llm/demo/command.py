"""The `demo` command: a night at a support desk, in about two minutes, without a key or a bill."""

import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

import airflow_batch_llm
from airflow_batch_llm.core.printing import counted
from airflow_batch_llm.demo import warehouse
from airflow_batch_llm.demo.airflow_api import AirflowApi, until
from airflow_batch_llm.demo.local_airflow import LocalAirflow, Setup, interrupted_by_sigterm
from airflow_batch_llm.simulator.handle import Simulator

_LOOK_SECONDS = 0.5
_WIDTH = 32  # of a cell, so that a table fits a terminal

_DOING: Mapping[str | None, str] = MappingProxyType(
    {
        None: "waiting for the scheduler",
        "scheduled": "waiting for a worker",
        "queued": "waiting for a worker",
        "running": "working",
        "deferred": "waiting, and no worker is held",
        "up_for_retry": "waiting for another try",
        "success": "done",
        "failed": "failed",
    }
)

_ENDED = ("success", "failed")


def follow(console: Console, state: Callable[[], str | None], answered: Callable[[], int]) -> str:
    """Show a task until it has ended, and how many requests the model has answered meanwhile. Its state is given."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=12),
        MofNCompleteColumn(),
        TextColumn("answered"),
        TimeElapsedColumn(),
    )
    before, doing = answered(), ""
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("", total=None)
        while True:
            now = state()
            said = _DOING.get(now, now or "")
            if said != doing and not console.is_terminal:
                progress.console.print(f"  {said}")
            doing = said
            done = answered() - before
            progress.update(bar, description=f"{said:<30}", completed=done)
            if now in _ENDED:
                progress.update(bar, total=done)
                return str(now)
            time.sleep(_LOOK_SECONDS)


def show_rows(console: Console, title: str, names: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A few rows of a table."""
    table = Table(title=title, title_justify="left")
    for name in names:
        table.add_column(name, no_wrap=True)
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    console.print(table)


def show_report(console: Console, report: Mapping[str, Any]) -> None:
    """Print the result and the cost of a run."""
    why = ", ".join(f"{count:,} {reason}" for reason, count in report["why"].items())
    usage, cost = report["usage"], report["cost"]
    table = Table(show_header=False, box=None, padding=(0, 2))
    table.add_row("verdict", report["verdict"])
    table.add_row("rows read", why)
    table.add_row("requests bought", f"{report['requests']:,} in {counted(len(report['batches']), 'batch')}")
    table.add_row("tokens", f"{usage['input_tokens']:,} in, {usage['output_tokens']:,} out")
    table.add_row("cost", f"${cost['usd']:.4f} by batch; one by one, in real time, ${cost['list_usd']:.4f}")
    console.print(table)


def _cell(value: Any) -> str:
    text = "NULL" if value is None else " ".join(str(value).split())
    return text if len(text) <= _WIDTH else f"{text[: _WIDTH - 1]}…"


RESPONDER = "airflow_batch_llm.demo.tickets:respond"
_DAG, _TASK = "nightly_labels", "label_tickets"
_BATCH_SECONDS = 8.0
_CHANGED = 3
_MARK = "made-by-airflow-batch-llm-demo"

_SHOWN = ("id", "ticket", "topic", "urgency", "language")
_LABELLED = """
SELECT ticket_id, concat_ws(': ', t.subject, t.body), topic, urgency, language
FROM support.ticket_labels l JOIN support.tickets t USING (ticket_id) ORDER BY ticket_id DESC LIMIT 8
"""
_LABELLED_LAST = """
SELECT ticket_id, '… ' || right(body, 28), topic, urgency, language
FROM support.ticket_labels JOIN support.tickets USING (ticket_id)
ORDER BY _llm_planned_at DESC, ticket_id LIMIT ?
"""


def demo(
    folder: Annotated[Path, typer.Option(help="Folder of the demo. It is emptied first.")] = Path(".demo"),
    tickets: Annotated[int, typer.Option(help="How many support tickets there are.", min=30)] = 3_000,
    stay: Annotated[bool, typer.Option(help="Leave Airflow's UI up at the end, until Ctrl-C.")] = False,
) -> None:
    """Label a table of support tickets in a real Airflow, with a simulated model: no key, no bill."""
    console = Console()
    try:
        with interrupted_by_sigterm():
            _Night(folder.absolute(), tickets, console).run(stay=stay)
    except KeyboardInterrupt:
        console.print("Interrupted. Everything that was started has been stopped.")
        raise typer.Exit(130) from None
    except (RuntimeError, TimeoutError) as error:
        console.print(str(error), markup=False, highlight=False)
        raise typer.Exit(1) from error


def last_night(now: datetime) -> date:
    """The day of the nightly Dag's last scheduled run, which begins at two o'clock."""
    return (now - timedelta(hours=2)).date()


def connections(simulator_url: str, duckdb_path: Path) -> Mapping[str, Mapping[str, Any]]:
    """Return the default connections of the example Dags."""
    return {
        "anthropic_default": {"conn_type": "anthropic", "host": simulator_url, "password": "simulated"},
        "openai_default": {"conn_type": "openai", "host": f"{simulator_url}/v1", "password": "simulated"},
        "fs_default": {"conn_type": "fs"},
        "warehouse": {"conn_type": "duckdb", "host": str(duckdb_path)},
    }


def example_dags() -> Path:
    """The folder of the example Dags: in the installed package, or beside it in a checkout."""
    package = Path(airflow_batch_llm.__file__).parent
    inside = package / "example_dags"
    return inside if inside.is_dir() else package.parent / "dags"


class _Night:
    """The story, and where it takes place."""

    def __init__(self, folder: Path, tickets: int, console: Console) -> None:
        self._folder = folder
        self._tickets = tickets
        self._console = console
        self._duckdb = folder / "warehouse.duckdb"

    def run(self, *, stay: bool) -> None:
        self._make_folder()
        self._say(f"A warehouse with {self._tickets:,} support tickets: {self._duckdb}")
        warehouse.seed(self._duckdb, self._tickets, last_night(datetime.now(UTC)))
        with ExitStack() as started:
            simulator = started.enter_context(self._simulator())
            self._say(f"The simulator, which stands in for the provider: {simulator.url}")
            with self._console.status("Airflow starts: API server, scheduler, Dag processor, triggerer …"):
                airflow = started.enter_context(LocalAirflow(self._setup(simulator.url)))
            self._tell(airflow, simulator)
            if stay:
                self._console.input(f"Airflow's UI is at {airflow.api.url}. Enter ends it. ")
        self._say(f"Everything has been stopped. What was made is in {self._folder}")

    def _simulator(self) -> Simulator:
        return Simulator(
            data_dir=self._folder / "simulator", batch_seconds=_BATCH_SECONDS, responder=RESPONDER
        )

    def _setup(self, simulator_url: str) -> Setup:
        return Setup(
            home=self._folder / "airflow",
            dags=self._folder / "dags",
            connections=connections(simulator_url, self._duckdb),
        )

    def _tell(self, airflow: LocalAirflow, simulator: Simulator) -> None:
        api = airflow.api
        self._say(f"A real Airflow: {api.url}")
        airflow.until_read(_DAG)
        api.unpause(_DAG)
        first = until(lambda: next(iter(api.run_ids(_DAG)), None), f"a scheduled run of {_DAG}")
        self._heading(f"Last night's run of {_DAG}")
        self._follow(api, simulator, first)
        show_rows(
            self._console, "support.ticket_labels, the newest", _SHOWN, warehouse.ask(self._duckdb, _LABELLED)
        )

        self._heading(f"{_CHANGED} customers write once more, and the Dag runs again")
        warehouse.change(self._duckdb, _CHANGED)
        second = api.trigger(_DAG, logical_date=datetime.now(UTC).isoformat())
        report = self._follow(api, simulator, second)
        last = warehouse.ask(self._duckdb, _LABELLED_LAST, [_CHANGED])
        show_rows(self._console, "labelled again", _SHOWN, last)
        self._say(
            f"{counted(self._tickets, 'row')} were looked at, and {counted(report['requests'], 'request')} bought."
        )

    def _follow(self, api: AirflowApi, simulator: Simulator, run_id: str) -> Mapping[str, Any]:
        state = follow(
            self._console,
            lambda: api.task(_DAG, run_id, _TASK)["state"],
            lambda: simulator.ledger()["anthropic"]["rows"]["executed"],
        )
        if state != "success":
            self._console.print(api.log(_DAG, run_id, _TASK)[-4000:], markup=False)
            raise typer.Exit(1)
        report: Mapping[str, Any] = api.xcom(_DAG, run_id, _TASK)
        show_report(self._console, report)
        return report

    def _make_folder(self) -> None:
        """An empty folder. One that something else has filled is left alone."""
        if self._folder.exists() and any(self._folder.iterdir()) and not (self._folder / _MARK).exists():
            raise typer.BadParameter(
                f"{self._folder} holds something that no demo has made", param_hint="--folder"
            )
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        (self._folder / "dags").mkdir()
        (self._folder / _MARK).touch()
        shutil.copy(example_dags() / f"{_DAG}.py", self._folder / "dags")

    def _heading(self, text: str) -> None:
        self._console.rule(text, align="left")

    def _say(self, text: str) -> None:
        self._console.print(f"• {text}", highlight=False, soft_wrap=True)
