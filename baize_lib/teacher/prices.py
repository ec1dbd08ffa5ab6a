"""What a call costs, at a price with a date and a source.

>>> price = price_of("gpt-3.5-turbo", year=2023)
>>> f"${price.cost(Usage(input=248, output=200)):.6f}"
'$0.000896'
"""

import importlib.metadata
import re
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from datetime import UTC, datetime
from operator import add
from typing import Any, NamedTuple

from baize_lib.config import BaizeError
from baize_lib.models.weights import MODELS

__all__ = ["Usage", "Price", "price_of", "SHADOW_TEACHERS", "shadow_cost"]


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one or more calls. `cached_input` is a part of `input`, as in the API.

    >>> (Usage(10, 4, 5) + Usage(1, 0, 2)).total
    18
    """

    input: int = 0
    cached_input: int = 0
    output: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(*map(add, astuple(self), astuple(other)))

    @property
    def total(self) -> int:
        return self.input + self.output


@dataclass(frozen=True, slots=True)
class Price:
    """USD per million tokens, where it comes from and the date it was last checked."""

    model: str
    input: float
    output: float
    cached_input: float | None = None  # of input the provider had cached; None: no discount
    batch_factor: float = 1.0  # what the Batch API multiplies a bill by (0.5 is half price)
    source: str = ""
    as_of: str = ""

    def cost(self, usage: Usage, batch: bool = False) -> float:
        """USD for `usage`; with `batch`, through the Batch API."""
        cached = self.input if self.cached_input is None else self.cached_input
        new = usage.input - usage.cached_input
        bill = new * self.input + usage.cached_input * cached + usage.output * self.output
        return bill / 1e6 * (self.batch_factor if batch else 1.0)

    def __str__(self) -> str:
        if not (self.input or self.output):
            return f"{self.model}: $0 ({self.source})"
        usd = f"${self.input:g} in, ${self.output:g} out per million tokens"
        return f"{self.model}: {usd} ({self.source}, {self.as_of})"


FREE = Price("local", 0.0, 0.0, source="runs on this machine")
PRICE_2023 = Price(
    "gpt-3.5-turbo", 2.0, 2.0, as_of="2023-03", source="OpenAI's launch price, $0.002 per 1K tokens"
)
SHADOW_TEACHERS: tuple[str | Price, ...] = ("gpt-4.1-nano", "gpt-4o-mini", "gpt-5-mini", PRICE_2023)


def price_of(model: str, *, base_url: str | None = None, year: int | None = None) -> Price:
    """Today's price of a hosted model from genai-prices' bundled table (no network).

    Of models priced by prompt length it is the price of short prompts; of those priced by the
    hour, that of the dearest one. A batch price that the table does not know is the full one.
    The table knows more models when told their address (`base_url`); the models of
    `models.weights` are free. Of the past, only gpt-3.5-turbo's price in 2023 is known. A price
    that is not known is a BaizeError, never 0.
    """
    if model in MODELS:
        return replace(FREE, model=model)
    if (model, year) == (PRICE_2023.model, 2023):
        return PRICE_2023
    address = None if base_url is None or "api.openai.com" in base_url else base_url
    try:
        if year:
            raise LookupError(year)
        bills = [_usd_per_million(model, address, hour) for hour in range(24)]
    except (LookupError, ValueError):
        if address is not None:
            return price_of(model)
        when = f" in {year}" if year else ""
        raise BaizeError(
            f"no price is known for {model!r}{when}: set BAIZE_TEACHER_PRICE=0.5/1.5 (USD per "
            "million tokens in and out; 0/0 for a server of your own), or give "
            f"Price({model!r}, 0.5, 1.5)"
        ) from None
    read, said, cached, batch_read, batch_said, checked = map(max, zip(*bills, strict=True))
    shares = [new / old for new, old in ((batch_read, read), (batch_said, said)) if old]
    source = f"genai-prices {importlib.metadata.version('genai-prices')}"
    return Price(model, read, said, cached, round(max(shares, default=1.0), 4), source, checked)


def _usd_per_million(model: str, address: str | None, hour: int) -> tuple[Any, ...]:
    """USD for a million tokens: read, written, cached, the first two in a batch; when checked."""
    import genai_prices

    def bill(context: dict[str, str] | None = None, **tokens: int) -> Any:
        return genai_prices.calc_price(
            genai_prices.Usage(**tokens), model, provider_api_url=address, price_context=context,
            genai_request_timestamp=datetime.now(UTC).replace(hour=hour),
        )  # fmt: skip

    read, said, batch = {"input_tokens": 1000}, {"output_tokens": 1000}, {"processing": "batch"}
    bills = (
        bill(**read), bill(**said), bill(**read, cache_read_tokens=1000),
        bill(batch, **read), bill(batch, **said),
    )  # fmt: skip
    return *(float(b.total_price * 1000) for b in bills), _checked_on(bills[0].model)


def _checked_on(model: Any) -> str:
    """When genai-prices last checked this model, else when it last checked any."""
    from genai_prices.data_snapshot import get_snapshot

    every = (m.price_comments or "" for p in get_snapshot().providers for m in p.models)
    checked = re.compile(r"(?:verified|checked|updated)(?: on)? (\d{4}-\d\d-\d\d)", re.IGNORECASE)
    own = checked.findall(model.price_comments or "")
    return max(own or checked.findall("\n".join(every)), default="undated")


class ShadowCost(NamedTuple):
    """What a run would have cost at a paid teacher, at a price of a given date."""

    model: str
    usd: float
    as_of: str


def shadow_cost(
    usage: Usage, models: Sequence[str | Price] = SHADOW_TEACHERS
) -> tuple[ShadowCost, ...]:
    """What the same tokens would cost elsewhere: an estimate from above, for a free run too.

    Other models count tokens a little differently; cached input is billed in full.
    """
    plain = Usage(input=usage.input, output=usage.output)
    prices = [model if isinstance(model, Price) else price_of(model) for model in models]
    return tuple(ShadowCost(p.model, p.cost(plain), p.as_of) for p in prices)
