"""Facts about the providers in `PROVIDERS`. A provider without an entry here fails the tests that import it."""

from dataclasses import dataclass

from airflow_batch_llm.providers import PROVIDERS


@dataclass(frozen=True, slots=True, kw_only=True)
class Vendor:
    """The facts about one provider that tests need."""

    model: str
    uses_httpx: bool = True
    is_recognisable: bool = True
    """A batch can be recognised as ours while it runs."""


_VENDORS = {
    "anthropic": Vendor(model="claude-haiku-4-5", is_recognisable=False),
    "openai": Vendor(model="gpt-5-mini"),
    "vertex": Vendor(model="gemini-2.5-flash", uses_httpx=False),
}

MODELS = {name: _VENDORS[name].model for name in PROVIDERS}
OVER_HTTPX = [name for name in PROVIDERS if _VENDORS[name].uses_httpx]
RECOGNISABLE = [name for name in PROVIDERS if _VENDORS[name].is_recognisable]
