"""An output type with every kind of bound: on the simulator, the made-up answers obey them, whoever the vendor is."""

from decimal import Decimal
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from airflow_batch_llm.core.model import Outcome
from tests.stage.world import Bench


class Line(BaseModel):
    sku: str = Field(pattern=r"^[A-Z]{3}-\d{4}$", description="the article's number")
    quantity: int = Field(gt=0, lt=4)


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
