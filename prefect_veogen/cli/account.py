"""`models` and `balance`: the service's catalogue, and the account's balance."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from prefect_veogen.api.catalogue import read_catalogue
from prefect_veogen.api.client import find_balance
from prefect_veogen.api.pricing import quote
from prefect_veogen.cli.connection import connect
from prefect_veogen.cli.terminal import say, table, write_json
from prefect_veogen.models import CatalogueModel, GenerationRequest, in_usd

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Sequence

    from prefect_veogen.api.client import VeogenClient
    from prefect_veogen.api.responses import Balance


def models(options: Namespace) -> int:
    """Write the catalogue, or one model of it."""
    client = connect(options).client
    if options.slug is None:
        catalogue = asyncio.run(read_catalogue(client))
        if options.json:
            write_json([_described(model) for model in catalogue])
        else:
            _write_catalogue(catalogue)
        return 0
    model = asyncio.run(client.get_model(options.slug))
    if options.json:
        write_json(_described(model))
    else:
        _write_model(model)
    return 0


def balance(options: Namespace) -> int:
    """Write the account's balance."""
    found = asyncio.run(_read_balance(connect(options).client))
    if options.json:
        write_json({"remaining_usd": found.remaining_usd, "spent_usd": found.spent_usd})
        return 0
    say(f"The account holds {in_usd(found.remaining_usd)} and has spent {in_usd(found.spent_usd)}.")
    return 0


async def _read_balance(client: VeogenClient) -> Balance:
    # Where neither endpoint states a balance, another request raises the reason, or gives a response without figures.
    return await find_balance(client) or await client.get_account()


# ---------------------------------------------------------------- prices


def _price(model: CatalogueModel, resolution: str | None = None, duration: int | None = None) -> Decimal | None:
    request = GenerationRequest(model=model.slug, prompt="what it costs", resolution=resolution, duration=duration)
    return quote(request, model).usd


def _is_per_second(model: CatalogueModel) -> bool:
    return model.multiply_by_duration


def _unit_prices(model: CatalogueModel) -> dict[str, Decimal | None]:
    """Return the price by resolution: per second where seconds are billed, else per generation."""
    one = 1 if _is_per_second(model) else None
    resolutions = model.resolutions or tuple(model.resolution_multipliers)
    return {name: _price(model, name, one) for name in resolutions} or {"": _price(model, None, one)}


def _price_range(model: CatalogueModel) -> str:
    if _is_per_second(model) and not model.durations:
        ends = sorted({price for price in _unit_prices(model).values() if price is not None})
    else:
        lengths = (min(model.durations), max(model.durations)) if model.durations else (None,)
        every = {_price(model, name or None, length) for name in _unit_prices(model) for length in lengths}
        ends = sorted(price for price in every if price is not None)
    if not ends:
        return "unknown"
    return in_usd(ends[0]) if ends[0] == ends[-1] else f"{in_usd(ends[0])} to {in_usd(ends[-1])}"


def _billed(model: CatalogueModel) -> str:
    parts = []
    if _is_per_second(model):
        parts.append("by the second" + (f", {_lengths(model)}" if model.durations else ""))
    factors = [
        f"{name} x{factor.normalize():f}" for name, factor in model.resolution_multipliers.items() if factor != 1
    ]
    return "; ".join([*parts, *factors])


def _lengths(model: CatalogueModel) -> str:
    durations = sorted(model.durations or ())
    if len(durations) > 2 and durations == list(range(durations[0], durations[-1] + 1)):
        return f"{durations[0]}-{durations[-1]} s"
    return ", ".join(map(str, durations)) + " s"


def _described(model: CatalogueModel) -> dict[str, Any]:
    unit = "second" if _is_per_second(model) else "generation"
    prices = {name or "any": price for name, price in _unit_prices(model).items()}
    return {**model.model_dump(mode="json"), "priced_per": unit, "price_usd_by_resolution": prices}


# ---------------------------------------------------------------- for people


def _write_catalogue(catalogue: Sequence[CatalogueModel]) -> None:
    heads = ("MODEL", "MAKES", "ONE COSTS", "BILLED")
    rows = [(model.slug, model.type or "?", _price_range(model), _billed(model)) for model in catalogue]
    table(heads, rows, right=("ONE COSTS",))
    say(
        "",
        f"{len(catalogue)} models. More about one: prefect-veogen models {catalogue[0].slug if catalogue else 'MODEL'}",
    )


def _write_model(model: CatalogueModel) -> None:
    per_second = _is_per_second(model)
    say(f"{model.slug} ({model.label or model.slug}) makes {f'{model.type}s' if model.type else 'something'}")
    say("")
    lengths = sorted({min(model.durations), max(model.durations)}) if per_second and model.durations else []
    heads = ["RESOLUTION", "A SECOND" if per_second else "PRICE", *(f"{length} S" for length in lengths)]
    rows = [
        [name or "(one only)", in_usd(price), *(in_usd(_price(model, name or None, length)) for length in lengths)]
        for name, price in _unit_prices(model).items()
    ]
    table(heads, rows, right=heads[1:])
    facts = {
        "aspect_ratio": model.aspect_ratios,
        "duration": (_lengths(model),) if model.durations else None,
        "mode": model.modes,
        "style": model.styles,
        "takes": model.supported_params,
    }
    say("")
    table(("", ""), [(name, ", ".join(values)) for name, values in facts.items() if values])
