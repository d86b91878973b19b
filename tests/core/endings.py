"""The ends of a world of the submission protocol, and the faults that it may have then."""

from collections.abc import Iterator
from dataclasses import replace

from airflow_batch_llm.core.journal import CLOCK_SKEW_SECONDS, stand
from airflow_batch_llm.core.submission import Created, Send, Stop, advance, begin
from tests.core.protocol_model import (
    LAG,
    LEASE,
    TERMS,
    Batch,
    Rules,
    World,
    named,
    replies,
    sweep_asks,
    swept_on,
)
from tests.core.sweep_model import SEARCHING


def faults(world: World, rules: Rules) -> Iterator[str]:
    """Return the faults of a world in which attempts may still be at work."""
    if not rules.long_pauses and len(world.batches) > 1 + world.repeated:
        yield "a second batch was bought"
    if quiet(world):
        for ended in endings(world, rules):
            yield from _faults_in_the_end(ended, rules)


def _faults_in_the_end(ended: World, rules: Rules) -> Iterator[str]:
    standing = stand(ended.journal)
    if standing.batch is None:
        yield "no batch is recorded in the end"
        return
    recorded = standing.batch.batch_id
    batches, running = (
        {batch.id for batch in ended.batches if batch.running or not only} for only in (False, True)
    )
    if rules.recognisable and recorded not in running:
        yield "the recorded batch was cancelled"
    if not rules.long_pauses and not ended.repeated and batches != {recorded}:
        yield "a batch besides the recorded one exists"
    if running - {recorded}:
        yield "a stray batch runs after the sweep"
    if batches != {recorded, *standing.spare}:
        yield "nobody knows of a batch, which is on the bill"


def endings(world: World, rules: Rules) -> Iterator[World]:
    """Yield the ends of a world in which no attempt is at work: one more attempt, then a sweep, and nothing disturbs them.

    What flew is lost; or, where a creation may come late, arrives before that attempt or just after it.
    """
    yield swept(settled(world._replace(flying=()), rules), rules)
    if rules.long_pauses and world.flying:
        yield swept(settled(_arrived(world), rules), rules)
        calm = settled(world._replace(flying=()), rules)
        yield swept(_arrived(calm._replace(flying=world.flying)), rules)


def _arrived(world: World) -> World:
    arrived = tuple(Batch(flying.id, world.now) for flying in world.flying)
    return world._replace(batches=(*world.batches, *arrived), flying=())


def settled(world: World, rules: Rules) -> World:
    """Return the world after an undisturbed attempt, long after all sent requests."""
    calm = _later(world, rules)
    attempt, action = begin("calm")
    while not isinstance(action, Stop):
        if isinstance(action, Send):
            name = f"c{len(calm.batches) + 1}"
            calm, answer = (
                calm._replace(batches=(*calm.batches, Batch(name, calm.now))),
                Created(batch_id=name),
            )
        else:
            calm, answer = next(replies(calm, action, rules))  # type: ignore[assignment]
        attempt, action = advance(attempt, answer, TERMS, calm.now)
    return calm


def swept(world: World, rules: Rules) -> World:
    """Return the world after the undisturbed search with which a run ends, long after everything else."""
    calm = _later(world, rules)
    calm = calm._replace(swept=calm.swept + 1, sweep=SEARCHING)
    while calm.sweep is not None and (action := sweep_asks(calm.sweep)) is not None:
        after, answer = next(replies(calm, named(action, calm), rules))
        calm = swept_on(after, calm.sweep, answer)
    return calm._replace(sweep=None)


def _later(world: World, rules: Rules) -> World:
    later = world._replace(now=world.now + 10 * (LEASE + LAG + CLOCK_SKEW_SECONDS))
    if not rules.recognisable:  # by then batches have ended by themselves
        later = later._replace(batches=tuple(replace(batch, running=False) for batch in later.batches))
    return later


def quiet(world: World) -> bool:
    """Return whether every attempt has stopped or died."""
    at_work = any(attempt is not None for attempt in world.attempts) or world.sweep is not None
    return bool(world.attempts) and not at_work
