"""Facts about the providers in `PROVIDERS`. A provider without an entry here fails the tests that import it."""

from dataclasses import dataclass

from airflow_batch_llm.providers import PROVIDERS


@dataclass(frozen=True, slots=True, kw_only=True)
class Vendor:
    """The facts about one provider that tests need."""

    model: str
    other_model: str
    """A stronger model."""
    priced_as: str
    """The vendor's name in the list of public prices."""
    output_tokens: bytes
    """Field of a result line that counts the answer's tokens."""
    answering_model: bytes
    """Field of a result line that names the model."""
    path: str = ""
    """Path of the base URL that its SDK takes."""
    results: str | None = None
    """The simulator's name for the call that fetches results. Default: they are read from a bucket."""
    flex: tuple[str, str] | None = None
    """The answer's words for the usual tier and for the flex tier. Default: it has no flex tier in real time."""
    uses_httpx: bool = True
    is_recognisable: bool = True
    """A batch can be recognised as ours while it runs."""

    def base_url(self, simulator_url: str) -> str:
        """Return the URL for the connection of a provider that a simulator plays."""
        return simulator_url + self.path


_VENDORS = {
    "anthropic": Vendor(
        model="claude-haiku-4-5",
        other_model="claude-sonnet-4-6",
        priced_as="anthropic",
        output_tokens=b"output_tokens",
        answering_model=b"model",
        results="results",
        is_recognisable=False,
    ),
    "openai": Vendor(
        model="gpt-5-mini",
        other_model="gpt-5",
        priced_as="openai",
        output_tokens=b"completion_tokens",
        answering_model=b"model",
        path="/v1",
        results="content",
        flex=("default", "flex"),
    ),
    "vertex": Vendor(
        model="gemini-2.5-flash",
        other_model="gemini-2.5-pro",
        priced_as="google",
        output_tokens=b"candidatesTokenCount",
        answering_model=b"modelVersion",
        flex=("ON_DEMAND", "ON_DEMAND_FLEX"),
        uses_httpx=False,
    ),
}

VENDORS = {name: _VENDORS[name] for name in PROVIDERS}
MODELS = {name: vendor.model for name, vendor in VENDORS.items()}
OTHER_MODELS = {name: vendor.other_model for name, vendor in VENDORS.items()}
OVER_HTTPX = [name for name, vendor in VENDORS.items() if vendor.uses_httpx]
RECOGNISABLE = [name for name, vendor in VENDORS.items() if vendor.is_recognisable]
FETCHED = [name for name, vendor in VENDORS.items() if vendor.results]
FLEXIBLE = [name for name, vendor in VENDORS.items() if vendor.flex]
