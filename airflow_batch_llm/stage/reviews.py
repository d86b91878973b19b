"""Keep the review table of a target in step with the two other tables, where the stage has one."""

from airflow_batch_llm.errors import InputError
from airflow_batch_llm.warehouses.base import KeepsReviews, Part, Target, Warehouse


def keeps_reviews(warehouse: Warehouse) -> KeepsReviews:
    """Return the warehouse as one that keeps a review table. Raises `InputError` if it does not."""
    if isinstance(warehouse, KeepsReviews):
        return warehouse
    raise InputError(
        f"on_exhausted='review' needs a review table, and {type(warehouse).__name__} keeps none. Set"
        " on_exhausted='record', or use another warehouse for the target. Nothing was sent."
    )


def prepare_tables(warehouse: Warehouse, target: Target) -> None:
    """Create or extend all tables of a target, and probe that writing is allowed."""
    warehouse.prepare(target)
    if target.review is not None:
        keeps_reviews(warehouse).prepare_reviews(target)


def publish_parts(warehouse: Warehouse, target: Target, parts: list[Part]) -> None:
    """Merge the staged parts, and bring the review table to what the tables say then."""
    warehouse.publish(target, parts)
    if target.review is not None:
        keeps_reviews(warehouse).refresh_reviews(target)
