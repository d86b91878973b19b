"""The `story` command: from a first night to a better prompt and its bill, in about three minutes, without a key.

It drives a real Airflow by its REST API, and prints the commands that a person would type instead. Commands of this
package are run as they are printed.
"""

import re
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from html import unescape
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from airflow_batch_llm.core.printing import counted
from airflow_batch_llm.demo import warehouse
from airflow_batch_llm.demo.command import Cast, Scene, ends_with_a_message, show_report, show_rows

_NIGHTLY, _ROLLOUT, _FILE = "nightly_topics", "prompt_rollout", "prompt_rollout"
_EVALUATE, _LABEL = "evaluate", "label_tickets"
_LEDGER = "support.llm_usage"
_LEDGER_FILE = f"""\
usage_table: {_LEDGER}
usage_warehouse:
  duckdb: warehouse.duckdb
workspace: workspace
"""
_BATCH_SECONDS = 4.0
_CHANGED = 3
_SHOWN = 6

_TOPICS = "SELECT ticket_id, topic FROM support.ticket_topics"
_TEXTS = "SELECT ticket_id, concat_ws(': ', subject, body) FROM support.tickets ORDER BY ticket_id DESC"
_TILE = re.compile(r"<span>([^<]+)</span><b[^>]*>([^<]*)</b>")


def story(
    folder: Annotated[Path, typer.Option(help="Folder of the story. It is emptied first.")] = Path(".story"),
    tickets: Annotated[int, typer.Option(help="How many support tickets there are.", min=300)] = 600,
    stay: Annotated[bool, typer.Option(help="Leave Airflow's UI up at the end, until Enter.")] = False,
) -> None:
    """Live with the package for two nights: label, look, measure a better prompt, roll it out, read the bill."""
    console = Console()
    scene = Scene(
        folder=folder.absolute(),
        dag_files=(_FILE,),
        console=console,
        settings={
            "BATCH_LLM__WORKSPACE": str(folder.absolute() / "workspace"),
            "BATCH_LLM__USAGE_TABLE": _LEDGER,
            "BATCH_LLM__USAGE_CONN_ID": "warehouse",
        },
    )
    with ends_with_a_message(console), scene.playing(tickets, _BATCH_SECONDS, stay=stay) as cast:
        _Story(scene, cast, folder).tell()


def tiles(page: str) -> dict[str, str]:
    """Return the figures at the top of a view of the page "LLM batches", by their names."""
    return {unescape(name).strip(): unescape(figure).strip() for name, figure in _TILE.findall(page)}


def gone_live(dag_file: str) -> str:
    """Return the text of the Dags' file with the candidate as the live prompt."""
    return re.sub(r"(?m)^(CANDIDATE = .*)$", r"\1\nLIVE = CANDIDATE", dag_file)


class _Story:
    """The chapters, in their order."""

    def __init__(self, scene: Scene, cast: Cast, typed: Path) -> None:
        self._scene = scene
        self._cast = cast
        self._typed = typed
        """The folder as the user has named it: commands are printed with it."""

    def tell(self) -> None:
        night = self._first_night()
        self._look(_NIGHTLY, night, _LABEL)
        before = self._topics()
        rollout = self._evaluate()
        self._roll_out(rollout, before)
        self._second_night()
        self._bill()

    def _first_night(self) -> str:
        self._scene.heading("1. A first night: last night's run labels every ticket")
        self._type(f"airflow dags unpause {_NIGHTLY}")
        run_id = self._scene.last_nights_run(self._cast, _NIGHTLY)
        show_report(self._scene.console, self._scene.follow(self._cast, _NIGHTLY, run_id, _LABEL))
        topics = self._topics()
        rows = [(ticket, text, topics[ticket]) for ticket, text in self._ask(_TEXTS)[:_SHOWN]]
        show_rows(self._scene.console, "support.ticket_topics, the newest", ("id", "ticket", "topic"), rows)
        return run_id

    def _look(self, dag_id: str, run_id: str, task_id: str) -> None:
        self._scene.heading("2. The page: Browse → LLM batches in Airflow's UI")
        link = self._cast.api.link(dag_id, run_id, task_id, "LLM batches") or "/llm-batches/"
        self._scene.say(f"All runs: {self._cast.api.url}/plugin/llm-batches")
        self._scene.say(f"This run: {self._cast.api.url}{link}")
        self._scene.say("It says:")
        self._figures(link)
        self._command("runs", str(self._typed / "workspace"))

    def _evaluate(self) -> str:
        self._scene.heading("3. A better prompt, asked about tickets whose topic people have decided")
        self._scene.say(
            "The live prompt shows the model the first words of a ticket, the candidate all of them."
        )
        self._type(f"airflow dags unpause {_ROLLOUT}")
        self._type(f"airflow dags trigger {_ROLLOUT}")
        self._cast.airflow.until_read(_ROLLOUT)
        self._cast.api.unpause(_ROLLOUT)
        run_id = self._cast.api.trigger(_ROLLOUT)
        found = self._scene.follow(self._cast, _ROLLOUT, run_id, _EVALUATE)
        self._compare(found)
        self._scene.say(found["verdict"])
        if link := self._cast.api.link(_ROLLOUT, run_id, _EVALUATE, "LLM batches"):
            page = link.replace("/run?", "/evaluation?")
            self._cast.api.page(page)
            self._scene.say(f"Its report: {self._cast.api.url}{page}")
        return run_id

    def _compare(self, found: Mapping[str, Any]) -> None:
        table = Table(box=None, padding=(0, 2))
        for name in ("", "live prompt", "candidate"):
            table.add_column(name)
        for name, one in found["columns"].items():
            rows, right, before = one["rows"], one["right"], one["baseline_right"]
            table.add_row(f"{name}: right of {rows}", f"{before}", f"{right}")
            table.add_row(f"{name}: accuracy", f"{before / one['compared']:.1%}", f"{one['accuracy']:.1%}")
        self._scene.console.print(table)

    def _roll_out(self, run_id: str, before: Mapping[int, str]) -> None:
        self._scene.heading("4. It is better, so every older answer is asked for again")
        self._scene.say('LLMTransformOperator(task_id="label_tickets", only="outdated", …)')
        show_report(self._scene.console, self._scene.follow(self._cast, _ROLLOUT, run_id, _LABEL))
        after = self._topics()
        moved = [
            (ticket, text, before[ticket], after[ticket])
            for ticket, text in self._ask(_TEXTS)
            if before[ticket] != after[ticket]
        ]
        title = f"{counted(len(moved), 'ticket')} of {len(after):,} moved to another topic"
        show_rows(self._scene.console, title, ("id", "ticket", "before", "after"), moved[:_SHOWN])

    def _second_night(self) -> None:
        self._scene.heading(
            f"5. A second night, by the new prompt: {_CHANGED} customers have written once more"
        )
        self._scene.say(f"LIVE = CANDIDATE in dags/{_FILE}.py")
        dag_file = self._scene.folder / "dags" / f"{_FILE}.py"
        dag_file.write_text(gone_live(dag_file.read_text()))
        warehouse.change(self._scene.duckdb, _CHANGED)
        run_id = self._cast.api.trigger(_NIGHTLY, logical_date=datetime.now(UTC).isoformat())
        report = self._scene.follow(self._cast, _NIGHTLY, run_id, _LABEL)
        show_report(self._scene.console, report)
        looked = counted(sum(report["why"].values()), "row")
        self._scene.say(f"{looked} read, and {counted(report['requests'], 'request')} bought.")

    def _bill(self) -> None:
        self._scene.heading("6. The bill, from the ledger")
        (self._scene.folder / "ledger.yaml").write_text(_LEDGER_FILE)
        for by in ("dag", "prompt"):
            self._command("usage", str(self._typed / "ledger.yaml"), "--by", by)
        ((requests, usd),) = self._ask(f"SELECT sum(requests), sum(usd) FROM {_LEDGER}")
        charged = self._cast.simulator.ledger()["anthropic"]["rows"]["charged"]
        self._scene.say(
            f"The ledger has {counted(requests, 'request')} for ${usd:.4f}; the provider charged {charged:,}."
        )
        self._scene.say(f"Spend on the page, {self._cast.api.url}/llm-batches/spend, says:")
        self._figures("/llm-batches/spend")

    def _topics(self) -> dict[int, str]:
        return dict(self._ask(_TOPICS))

    def _ask(self, sql: str) -> list[Any]:
        return warehouse.ask(self._scene.duckdb, sql)

    def _figures(self, path: str) -> None:
        """Print the figures at the top of a page."""
        figures = tiles(self._cast.api.page(path))
        if not figures:
            raise RuntimeError(f"The page {self._cast.api.url}{path} shows no figures.")
        table = Table(show_header=False, box=None, padding=(0, 2))
        for name, figure in figures.items():
            table.add_row(name, figure)
        self._scene.console.print(table)

    def _command(self, *arguments: str) -> None:
        """Run a command of this package as it is printed."""
        self._type("airflow-batch-llm " + " ".join(arguments))
        program = Path(sys.executable).with_name("airflow-batch-llm")
        subprocess.run([program, *arguments], check=True)  # noqa: S603 - the command is ours
        self._scene.console.print()

    def _type(self, command: str) -> None:
        self._scene.console.print(f"$ {command}", style="bold", markup=False, highlight=False, soft_wrap=True)
