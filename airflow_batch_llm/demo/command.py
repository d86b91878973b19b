"""The `demo` command: a night at a support desk, in about two minutes, without a key or a bill."""

import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
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
from airflow_batch_llm.demo.local_airflow import (
    AirflowApi,
    LocalAirflow,
    Setup,
    interrupted_by_sigterm,
    until,
)
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
    """Return a few rows of a table."""
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


RESPONDER = "airflow_batch_llm.demo.warehouse:respond"
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
    scene = Scene(folder=folder.absolute(), dag_files=(_DAG,), console=console)
    with ends_with_a_message(console), scene.playing(tickets, _BATCH_SECONDS, stay=stay) as cast:
        _Night(scene, cast).tell()


@contextmanager
def ends_with_a_message(console: Console) -> Iterator[None]:
    """Let SIGTERM and Ctrl-C stop what was started, and print errors without a traceback."""
    try:
        with interrupted_by_sigterm():
            yield
    except KeyboardInterrupt:
        console.print("Interrupted. Everything that was started has been stopped.")
        raise typer.Exit(130) from None
    except (RuntimeError, TimeoutError, subprocess.CalledProcessError) as error:
        console.print(str(error), markup=False, highlight=False)
        raise typer.Exit(1) from error


def last_night(now: datetime) -> date:
    """Return the day of the nightly Dag's last scheduled run, which begins at two o'clock."""
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
    """Return the folder of the example Dags: in the installed package, or next to it in a checkout."""
    package = Path(airflow_batch_llm.__file__).parent
    inside = package / "example_dags"
    return inside if inside.is_dir() else package.parent / "dags"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cast:
    """The servers that run while a scene plays."""

    airflow: LocalAirflow
    simulator: Simulator

    @property
    def api(self) -> AirflowApi:
        return self.airflow.api


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """The folder of a demo, and the console that it prints to."""

    folder: Path
    dag_files: tuple[str, ...]
    """The names of the example Dags' files, without `.py`."""
    console: Console
    settings: Mapping[str, str] = field(default_factory=dict)
    """Further settings of Airflow, as SECTION__KEY. Default: none."""

    @property
    def duckdb(self) -> Path:
        return self.folder / "warehouse.duckdb"

    @contextmanager
    def playing(self, tickets: int, batch_seconds: float, *, stay: bool) -> Iterator[Cast]:
        """Start the simulator and Airflow over a table of tickets, and stop both at the end; with `stay`, after Enter."""
        self._make_folder()
        self.say(f"A warehouse with {tickets:,} support tickets: {self.duckdb}")
        warehouse.seed(self.duckdb, tickets, last_night(datetime.now(UTC)))
        with ExitStack() as started:
            simulator = started.enter_context(
                Simulator(
                    data_dir=self.folder / "simulator", batch_seconds=batch_seconds, responder=RESPONDER
                )
            )
            self.say(f"The simulator, which stands in for the provider: {simulator.url}")
            setup = Setup(
                home=self.folder / "airflow",
                dags=self.folder / "dags",
                connections=connections(simulator.url, self.duckdb),
                settings=self.settings,
            )
            with self.console.status("Airflow starts: API server, scheduler, Dag processor, triggerer …"):
                airflow = started.enter_context(LocalAirflow(setup))
            self.say(f"A real Airflow: {airflow.api.url}")
            yield Cast(airflow=airflow, simulator=simulator)
            if stay:
                self.console.input(f"Airflow's UI is at {airflow.api.url}. Enter ends it. ")
        self.say(f"Everything has been stopped. What was made is in {self.folder}")

    def last_nights_run(self, cast: Cast, dag_id: str) -> str:
        """Unpause a Dag with a schedule, and return the run that Airflow starts for last night."""
        cast.airflow.until_read(dag_id)
        cast.api.unpause(dag_id)
        return until(lambda: next(iter(cast.api.run_ids(dag_id)), None), f"a scheduled run of {dag_id}")

    def follow(self, cast: Cast, dag_id: str, run_id: str, task_id: str) -> Mapping[str, Any]:
        """Show a task until it has ended, and return what it leaves in XCom. Raises RuntimeError with its log."""
        state = follow(
            self.console,
            lambda: cast.api.task(dag_id, run_id, task_id)["state"],
            lambda: cast.simulator.ledger()["anthropic"]["rows"]["executed"],
        )
        if state != "success":
            raise RuntimeError(
                f"{task_id} of {dag_id}: {state}\n{cast.api.log(dag_id, run_id, task_id)[-4000:]}"
            )
        returned: Mapping[str, Any] = cast.api.xcom(dag_id, run_id, task_id)
        return returned

    def heading(self, text: str) -> None:
        self.console.rule(text, align="left")

    def say(self, text: str) -> None:
        self.console.print(f"• {text}", highlight=False, markup=False, soft_wrap=True)

    def _make_folder(self) -> None:
        """Return an empty folder. One that something else has filled is left alone."""
        if self.folder.exists() and any(self.folder.iterdir()) and not (self.folder / _MARK).exists():
            raise typer.BadParameter(
                f"{self.folder} holds something that no demo has made", param_hint="--folder"
            )
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        (self.folder / "dags").mkdir()
        (self.folder / _MARK).touch()
        for name in self.dag_files:
            shutil.copy(example_dags() / f"{name}.py", self.folder / "dags")


class _Night:
    """Two runs of the nightly Dag."""

    def __init__(self, scene: Scene, cast: Cast) -> None:
        self._scene = scene
        self._cast = cast

    def tell(self) -> None:
        scene, cast = self._scene, self._cast
        first = scene.last_nights_run(cast, _DAG)
        scene.heading(f"Last night's run of {_DAG}")
        show_report(scene.console, scene.follow(cast, _DAG, first, _TASK))
        newest = warehouse.ask(scene.duckdb, _LABELLED)
        show_rows(scene.console, "support.ticket_labels, the newest", _SHOWN, newest)

        scene.heading(f"{_CHANGED} customers write once more, and the Dag runs again")
        warehouse.change(scene.duckdb, _CHANGED)
        second = cast.api.trigger(_DAG, logical_date=datetime.now(UTC).isoformat())
        report = scene.follow(cast, _DAG, second, _TASK)
        show_report(scene.console, report)
        last = warehouse.ask(scene.duckdb, _LABELLED_LAST, [_CHANGED])
        show_rows(scene.console, "labelled again", _SHOWN, last)
        ((count,),) = warehouse.ask(scene.duckdb, "SELECT count(*) FROM support.tickets")
        scene.say(
            f"{counted(count, 'row')} were looked at, and {counted(report['requests'], 'request')} bought."
        )
