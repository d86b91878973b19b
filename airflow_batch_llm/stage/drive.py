"""Driving a run from its first row to its report in one process: scripts, notebooks, tasks without a triggerer."""

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from airflow_batch_llm.core.model import BatchStatus
from airflow_batch_llm.core.waiting import Cancel, Check, Headway, Reply, Sleep, Wish, drive, waiting
from airflow_batch_llm.providers.base import Provider
from airflow_batch_llm.stage.land.finishing import Finished
from airflow_batch_llm.stage.run import Pause, Run


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiter:
    """Performs the wishes of the waiting generator with a provider's synchronous client."""

    provider: Provider
    sleep: Callable[[float], None] = time.sleep
    on_check: Callable[[Mapping[str, BatchStatus]], None] | None = None
    say: Callable[[str], None] | None = None
    headway: Headway = field(default_factory=Headway)

    def perform(self, wish: Wish) -> Reply:
        match wish:
            case Check(batch_ids=batch_ids):
                seen = self.provider.check(batch_ids)
                self.headway.add(seen)
                if self.on_check is not None:
                    self.on_check(seen)
                return seen
            case Cancel(batch_id=batch_id):
                self.provider.cancel(batch_id)
            case Sleep(seconds=seconds):
                if self.say is not None:
                    self.say(self.headway.until(time.time(), seconds))
                self.sleep(seconds)
        return None


def complete(
    run: Run,
    *,
    sleep: Callable[[float], None] = time.sleep,
    on_pause: Callable[[Pause], None] | None = None,
    on_check: Callable[[Mapping[str, BatchStatus]], None] | None = None,
) -> Finished:
    """Move the run forward until it is over, waiting in between. `on_check` is shown what each look at batches saw."""
    waiter = Waiter(provider=run.parts.provider, sleep=sleep, on_check=on_check)
    while True:
        state = run.advance()
        if isinstance(state, Finished):
            return state
        if on_pause is not None:
            on_pause(state)
        drive(waiting(state.watch, run.parts.clock, random.random), waiter.perform)
