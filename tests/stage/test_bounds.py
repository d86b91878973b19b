"""An output type with every kind of bound: on the simulator, the made-up answers obey them, for every vendor."""

from decimal import Decimal
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from airflow_batch_llm.core.model import Outcome
from tests.stage.world import Bench


class Line(BaseModel):
    sku: str = Field(pattern=r"^[A-Z]{3}-\d{4}$", description="the article's number")
    quantity: int = Field(gt=0, lt=4)


class Invoice(BaseModel):
    total: Decimal = Field(max_digits=20, decimal_places=2)
    rate: Decimal


class Bounded(BaseModel):
    share: float = Field(ge=0, le=1)
    open: float = Field(gt=10, lt=10.5, description="between ten and a bit more")
    rating: int = Field(ge=1, le=5)
    dozen: int = Field(multiple_of=12, ge=24, le=48)
    cents: float = Field(multiple_of=0.01, ge=5, le=6)
    price: Decimal = Field(ge=0, le=100, max_digits=6, decimal_places=2)
    code: str = Field(min_length=2, max_length=4)
    slug: str = Field(pattern=r"^[a-z]+$", min_length=9, max_length=12)
    email: str = Field(json_schema_extra={"format": "email"})
    tags: list[Annotated[str, Field(max_length=3)]] = Field(min_length=2, max_length=3)
    chosen: set[Literal["a", "b", "c"]] = Field(min_length=2)
    lines: list[Line] = Field(min_length=1, max_length=2)
    score: int | None = Field(ge=-3, le=-1)


def test_made_up_answers_obey_every_bound(bench: Bench) -> None:
    bench.world.make_tickets(30)

    done = bench.complete(output_type=Bounded)

    assert done.report.final == {Outcome.SUCCEEDED: 30}
    assert done.report.attempts == {1: 30}


def test_a_decimal_is_exact_from_the_answer_s_digits_to_the_table(bench: Bench) -> None:
    bench.world.make_tickets(2)
    bench.fault(kind="text", rows=[0], text='{"total": 12345678901234567.12, "rate": 0.1}')
    bench.fault(kind="text", rows=[1], text='{"total": 0.125, "rate": 0.1}')

    done = bench.complete(output_type=Invoice, max_attempts=1, min_success_ratio=0)

    assert done.report.final == {Outcome.SUCCEEDED: 1, Outcome.INVALID: 1}
    assert bench.world.ask("SELECT total, rate, typeof(total), typeof(rate) FROM labels") == [
        (Decimal("12345678901234567.12"), Decimal("0.1"), "DECIMAL(20,2)", "DECIMAL(38,9)")
    ]
    assert bench.world.ask("SELECT _llm_error_code FROM labels__failures") == [("value_out_of_range",)]
