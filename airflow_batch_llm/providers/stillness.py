"""The garbage collector, kept still while a thread opens an SDK's client for an event loop.

An SDK's import makes a hundred thousand objects that stay. A full collection on the way looks at every object of the
process, and holds the interpreter, and with it the loop, for a tenth of a second or more.
"""

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_ONE_AT_A_TIME = threading.Lock()


@contextmanager
def stillness() -> Iterator[None]:
    """Collect nothing in this block; what it made joins the oldest objects without being looked at."""
    with _ONE_AT_A_TIME:
        collecting = gc.isenabled()
        gc.disable()
        try:
            yield
        finally:
            # Otherwise the next collection, however young, would look at all of it. Whoever has frozen objects
            # himself would find them thawed.
            if not gc.get_freeze_count():
                gc.freeze()
                gc.unfreeze()
            if collecting:
                gc.enable()
