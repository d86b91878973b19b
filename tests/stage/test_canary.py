"""A canary: a few requests first, and the rest only if their answers are good."""

from contextlib import closing

import pytest

from airflow_batch_llm.core.model import Outcome
from airflow_batch_llm.core.report import Report, to_xcom
from airflow_batch_llm.core.settings import Canary, Escalation, Route, Source
from airflow_batch_llm.errors import BudgetExceeded, CanaryFailed, InputError
from airflow_batch_llm.stage.erasing import Erasure, Options
from airflow_batch_llm.stage.inspection import inspect
from airflow_batch_llm.stage.land.finishing import Finished, land_again
from airflow_batch_llm.stage.person import Person
from airflow_batch_llm.stage.records.folder import RunFolder
from airflow_batch_llm.stage.run import Pause
from tests.stage.world import Bench, let_go
from tests.vendors import OTHER_MODELS

ROWS, SIZE = 300, 20

#: An answer of one token is cut off: the simulator's way to a prompt that cannot work.
BROKEN = {"max_tokens": 1}


def paid(bench: Bench) -> dict[str, int]:
    """Return the requests that the vendor charges, by the way to ask."""
    return {way: one["rows"] for way, one in bench.world.ledger()["ways"].items() if one["rows"]}


def failed(done: Finished) -> str:
    with pytest.raises(CanaryFailed) as error:
        done.raise_for_verdict()
    return str(error.value)


def test_a_good_canary_is_spread_by_hash_lands_first_and_is_bought_once(bench: Bench) -> None:
    bench.world.make_tickets(ROWS)
    seen: list[set[int]] = []

    def look(_: Pause) -> None:
        seen.append(set(bench.world.answers()))

    done = bench.complete(canary=SIZE, on_pause=look)

    hashes = bench.world.ask(f"SELECT id FROM labels ORDER BY _llm_input_hash LIMIT {SIZE}")
    assert seen[0] == {row for (row,) in hashes} != set(range(SIZE))
    assert done.report.final == {Outcome.SUCCEEDED: ROWS}
    assert paid(bench) == {"now": SIZE, "batch": ROWS - SIZE}
    told = to_xcom(done.report, done.about)["canary"]
    assert (told["ruling"], told["rows"], told["requests"], told["not_sent"]) == ("go", SIZE, SIZE, 0)
    assert told["estimate"]["usd"] == pytest.approx(done.report.spent.cost, rel=0.05)
    assert told["estimate"]["output_tokens"] == pytest.approx(done.report.usage.output_tokens, rel=0.05)
    assert told["estimate"]["usd"] < 0.8 * (done.report.estimate["usd"] or 0)
    assert any("The canary has passed. 20 of 20 rows succeeded" in line for line in bench.said)


def test_a_bad_canary_is_all_that_is_bought_and_the_next_run_asks_the_rest(bench: Bench) -> None:
    bench.world.make_tickets(ROWS)
    done = bench.complete(canary=SIZE, **BROKEN)

    said = failed(done)
    assert said.startswith("The canary has ended the run. None of 20 rows succeeded: truncated 20 (")
    assert f"{ROWS - SIZE} further requests were not sent." in said
    assert paid(bench) == {"now": SIZE}
    assert done.report.why == {"new": SIZE, "stopped": ROWS - SIZE}
    assert done.report.canary["not_sent"] == ROWS - SIZE
    assert len(bench.world.failures()) == SIZE
    assert bench.world.unfinished() == []
    assert failed(bench.complete(canary=SIZE, **BROKEN)) == said  # a retry
    assert paid(bench) == {"now": SIZE}
    assert bench.complete("dag/task/next").report.final == {Outcome.SUCCEEDED: ROWS}


def test_the_share_of_good_answers_that_is_enough_is_the_canarys_own(openai: Bench) -> None:
    bench = openai
    bench.world.make_tickets(ROWS)

    def run(name: str, canary: Canary) -> Finished:
        bench.fault(kind="status", endpoint="chat", status=400, nth=1, times=2)
        return bench.complete(f"dag/task/{name}", canary=canary, max_rows=50)

    strict, loose = run("strict", Canary(rows=SIZE)), run("loose", Canary(rows=SIZE, min_success_ratio=0.9))
    assert "18 of 20 rows succeeded (90.0%), below min_success_ratio=0.95" in failed(strict)
    assert (loose.report.canary["ruling"], loose.report.canary["succeeded"]) == ("go", 18)


def test_answers_that_are_longer_than_guessed_end_the_run_before_the_budget_is_gone(openai: Bench) -> None:
    bench = openai
    bench.world.make_tickets(ROWS)
    guess = bench.complete("dag/task/plan", plan_only=True, canary=SIZE)
    assert "20 requests would be asked first, as a canary." in guess.report.verdict
    assert guess.report.estimate["usd"] is not None
    most = guess.report.estimate["usd"] * 1.2
    bench.world.simulator.turn(reasoning_tokens=100)

    done = bench.complete(canary=SIZE, max_cost_usd=most)

    said = failed(done)
    assert (
        f"300 requests are estimated at ${done.report.canary['estimate']['usd']:,.4f} by the tokens" in said
    )
    assert f"above max_cost_usd={most:g}." in said
    assert (paid(bench), done.report.spent.cost < most) == ({"now": SIZE}, True)
    assert done.report.canary["ruling"] == "over_budget"
    assert done.report.final == {Outcome.SUCCEEDED: SIZE}


def test_what_fits_by_the_canarys_tokens_is_sent_where_a_part_is_wanted(openai: Bench) -> None:
    bench = openai
    bench.world.make_tickets(ROWS)
    bench.world.ask("CREATE TABLE known AS SELECT * FROM tickets WHERE id < 40")
    bench.complete("dag/task/known", source=Source(table="known"))
    bench.world.ask("UPDATE tickets SET body = body || '!' WHERE id % 3 = 0")
    bench.world.ask("ALTER TABLE tickets ADD COLUMN how VARCHAR")
    # The canary has some of these, so that the route is measured.
    bench.world.ask("UPDATE tickets SET how = 'strong' WHERE id % 10 = 9")
    strong = Route(model_id=f"openai:{OTHER_MODELS['openai']}", max_cost_usd=0.0035)
    given = {
        "canary": SIZE,
        "on_over_budget": "partial",
        "routes": {"strong": strong},
        "route_column": "how",
        "min_round_time": 0,
        "only": "changed",
    }
    guess = bench.complete("dag/task/plan", plan_only=True, **given).report
    before, rows = bench.world.charged(), guess.why["new"] + guess.why["changed"]
    bench.world.simulator.turn(reasoning_tokens=30)
    bench.fault(kind="invalid", nth=2, rows=[3])  # the next round has numbers of its own

    report = bench.complete(max_cost_usd=1, **given).report

    left = report.why["postponed"]
    assert (report.canary["ruling"], report.rounds) == ("go", 2)
    assert 0 < left < 28
    assert 0.5 * 0.0035 < report.routes["strong"].cost <= 0.0035
    assert report.final == {Outcome.SUCCEEDED: rows - left}
    assert (report.canary["not_sent"], report.routes["strong"].succeeded) == (left, 28 - left)
    assert bench.world.charged() - before == report.requests
    assert sum(report.why.values()) == ROWS
    told = f"and {left} rows are left to the next run. 28 requests of the route strong are"
    assert any(told in line for line in bench.said)
    seen = inspect(RunFolder(workspace=bench.world.workspace(), run="dag/task/run"), bench.world.clock())
    assert (dict(seen.why), {shard.state for shard in seen.shards}) == (dict(report.why), {"merged"})
    again = bench.complete("dag/task/again", plan_only=True, **given).report.why
    assert again.get("new", 0) + again.get("changed", 0) == left


def test_the_canarys_full_price_counts_against_the_budget_before_it_is_asked(openai: Bench) -> None:
    openai.world.make_tickets(ROWS)
    guess = openai.complete("dag/task/plan", plan_only=True).report.estimate["usd"] or 0.0
    with pytest.raises(BudgetExceeded, match="Nothing was sent"):
        openai.complete(canary=150, max_cost_usd=guess * 1.4)
    assert paid(openai) == {}


def test_each_route_has_its_part_of_the_canary_under_its_own_model(openai: Bench) -> None:
    bench = openai
    bench.world.make_tickets(ROWS)
    bench.world.ask(
        "CREATE OR REPLACE TABLE tickets AS SELECT *, CASE WHEN id % 10 = 0 THEN 'urgent' WHEN id % 2 = 1 THEN 'strong' END"
        " AS how FROM tickets"
    )
    strong = Route(model_id=f"openai:{OTHER_MODELS['openai']}", max_cost_usd=1.0)
    routes = {"routes": {"urgent": Route(way="now"), "strong": strong}, "route_column": "how"}

    report = bench.complete(canary=60, **routes).report

    assert report.final == {Outcome.SUCCEEDED: ROWS}
    landed = dict(bench.world.ask("SELECT _llm_route, count(*) FROM labels GROUP BY 1"))
    assert landed == {"default": 120, "strong": 150, "urgent": 30}
    assert {name: one.succeeded for name, one in report.routes.items()} == landed
    ways = bench.world.ledger()["ways"]
    assert (ways["now"]["rows"] + ways["batch"]["rows"], len(ways["now"]["by_model"])) == (ROWS, 2)
    assert report.canary["estimate"]["usd"] == pytest.approx(report.spent.cost, rel=0.1)
    seen = inspect(RunFolder(workspace=bench.world.workspace(), run="dag/task/run"), bench.world.clock())
    assert {route.name: route.succeeded for route in seen.routes} == landed
    assert len(seen.routes) == len(landed)
    assert bench.complete("dag/task/again", canary=60, only="outdated", **routes).report.rows == 0


def test_a_canary_in_a_batch_is_waited_for_and_shared_with_nobody(openai: Bench) -> None:
    bench = openai
    bench.world.make_tickets(ROWS, distinct=ROWS // 2)
    bench.world.simulator.turn(batch_seconds=3600)
    given = {"canary": Canary(rows=SIZE, way="batch")}
    try:
        pause = bench.advance("dag/task/one", **given)
        assert isinstance(pause, Pause)
        assert (len(pause.watch.batch_ids), pause.waiting[:27]) == (1, "The canary is asked first: ")
        assert bench.complete("dag/task/two").report.why == {"in_flight": ROWS}
        seen = inspect(RunFolder(workspace=bench.world.workspace(), run="dag/task/one"), bench.world.clock())
        assert (seen.canary, seen.shards[1].next) == ("waiting", "it is sent if the canary is good enough")
    finally:
        bench.world.simulator.turn(batch_seconds=0)
    done = bench.complete("dag/task/one", **given)
    assert done.report.final == {Outcome.SUCCEEDED: ROWS}
    assert paid(bench) == {"batch": ROWS // 2}
    seen = inspect(RunFolder(workspace=bench.world.workspace(), run="dag/task/one"), bench.world.clock())
    assert (seen.canary, {shard.state for shard in seen.shards}) == ("go", {"merged"})


def test_a_cancelled_canary_ends_the_run(openai: Bench) -> None:
    bench = openai
    bench.world.make_tickets(ROWS)
    bench.world.simulator.turn(batch_seconds=3600)
    given = {"canary": Canary(rows=SIZE, way="batch")}
    pause = bench.advance(**given)
    assert isinstance(pause, Pause)
    with closing(bench.world.provider()) as provider:
        provider.cancel(pause.watch.batch_ids[0])
    said = failed(bench.complete(**given))
    assert "None of 20 rows succeeded: canceled 20" in said
    assert bench.world.charged() == 0


def test_few_requests_go_without_a_canary(openai: Bench) -> None:
    openai.world.make_tickets(2 * SIZE - 1)
    report = openai.complete(canary=SIZE).report
    assert (report.canary, paid(openai)) == ({}, {"batch": 2 * SIZE - 1})
    assert "No canary: 39 requests are sent, fewer than twice the 20 of a canary." in openai.said


def test_a_failed_row_of_the_canary_is_asked_again_with_the_others(openai: Bench) -> None:
    bench = openai
    bench.world.make_tickets(ROWS)
    bench.fault(kind="body", endpoint="chat", effect="after", text='{"odd": [1]}', nth=3, times=1)
    bench.fault(kind="invalid", rows=[5], times=1)
    report = bench.complete(canary=SIZE, min_round_time=0).report
    assert (report.final, report.rounds) == ({Outcome.SUCCEEDED: ROWS}, 2)
    assert bench.world.failures() == {}


def test_a_failed_row_of_the_canary_goes_on_by_another_route_after_the_verdict(openai: Bench) -> None:
    bench = openai
    bench.world.make_tickets(ROWS)
    bench.fault(kind="status", endpoint="chat", status=400, nth=1, times=2)
    report = bench.complete(
        canary=Canary(rows=SIZE, min_success_ratio=0.9),
        routes={"strong": Route(model_id=f"openai:{OTHER_MODELS['openai']}")},
        escalate=[Escalation(to="strong", on={"errored"})],
        min_round_time=0,
    ).report
    assert report.final == {Outcome.SUCCEEDED: ROWS}
    landed = dict(bench.world.ask("SELECT _llm_route, count(*) FROM labels GROUP BY 1"))
    assert landed == {"default": ROWS - 2, "strong": 2}
    assert (report.canary["succeeded"], paid(bench)) == (
        SIZE - 2,
        {"now": SIZE - 2, "batch": ROWS - SIZE + 2},
    )


def test_what_was_merged_early_is_landed_again(openai: Bench) -> None:
    bench = openai
    bench.world.make_tickets(ROWS)
    for name, given in (
        ("dag/task/good", {"canary": SIZE}),
        ("dag/task/bad", {"canary": SIZE, "only": "all", **BROKEN}),
    ):
        bench.complete(name, **given)
        bench.world.ask("DROP TABLE labels")
        bench.world.ask("DROP TABLE labels__failures")
        run = bench.run(name)
        answers = land_again(run.parts, RunFolder(workspace=run.parts.workspace, run=name))
        let_go(run)
        count = bench.world.ask(
            "SELECT (SELECT count(*) FROM labels), (SELECT count(*) FROM labels__failures)"
        )
        assert (answers, *count[0]) == ((ROWS, ROWS, 0) if name == "dag/task/good" else (0, 0, SIZE))


def test_a_person_is_erased_from_what_a_failed_canary_left_unsent(openai: Bench) -> None:
    bench = openai
    bench.world.make_tickets(ROWS)
    bench.complete(canary=SIZE, **BROKEN)
    (sent,) = bench.world.ask("SELECT min(id) FROM labels__failures")
    ((unsent,),) = bench.world.ask(
        "SELECT min(id) FROM tickets WHERE id > 99 AND id NOT IN (SELECT id FROM labels__failures)"
    )
    workspace, scratch = bench.world.workspace(), bench.world.folder / "erasing"
    scratch.mkdir()
    for key in (*sent, unsent):
        (erased,) = Erasure(
            workspace=workspace,
            person=Person(values=(str(key),), columns=()),
            scratch=scratch,
            options=Options(),
        ).run()
        assert (erased.rows, erased.left) == (1, "")
    files = (bench.world.folder / "workspace").rglob("*.requests.jsonl")
    held = "".join(path.read_text() for path in files)
    assert f"subject {unsent}\\n" not in held
    assert f"subject {unsent + 1}\\n" in held


@pytest.mark.parametrize(
    ("canary", "said"),
    [
        ({"rows": 0}, "canary.rows must be 1 or more"),
        ({"rows": 5, "way": "soon"}, "canary.way must be one of"),
        ({"row": 5}, "canary.row is unknown; is it rows"),
        (-1, "canary.rows must be 1 or more"),
        (True, "canary"),
    ],
)
def test_a_canary_that_cannot_be_is_refused(openai: Bench, canary: object, said: str) -> None:
    with pytest.raises(InputError, match=said):
        openai.run(canary=canary)


def test_no_canary_is_none(openai: Bench) -> None:
    assert {openai.run(canary=none).stage.canary for none in (None, 0)} == {None}  # type: ignore[union-attr]
    assert Report().canary == {}
