"""Rows that use other rows' pictures: `row:ID` as an input, what may be referred to, and what comes first."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from typing import Final

from prefect_veogen.models import Asset, GenerationRequest, nearest

ROW: Final = "row:"
_MAX_HINTS = 3


def placeholder_image(of: str = "") -> Asset:
    """Return a stand-in for a picture that isn't made yet, where only the form of a request matters."""
    return Asset(uri="", sha256=f"of {of}", size=0, content_type="image/png", generation_id="")


def picture_of_row(reference: str) -> Asset:
    """Return what stands for the picture of another row until it is made."""
    return placeholder_image(reference).model_copy(update={"uri": reference})


def used_rows(request: GenerationRequest) -> tuple[str, ...]:
    """Return the ids of the rows whose pictures a request uses."""
    return tuple(
        item.uri.removeprefix(ROW)
        for item in request.image_urls or ()
        if isinstance(item, Asset) and item.uri.startswith(ROW)
    )


def with_pictures(request: GenerationRequest, pictures: Mapping[str, Asset]) -> GenerationRequest:
    """Return a request with the pictures of other rows, by their ids, as far as they are known."""
    if not used_rows(request):
        return request
    inputs = tuple(
        pictures.get(item.uri.removeprefix(ROW), item) if isinstance(item, Asset) else item
        for item in request.image_urls or ()
    )
    return request.model_copy(update={"image_urls": inputs})


def reference_problems(uses: Mapping[str, tuple[str, ...]], known: Collection[str]) -> Iterator[tuple[str, str]]:
    """Give each row that refers to an unknown one or to itself, if only in a circle, with the problem."""
    hints: dict[str, str] = {}  # each compares all ids: thousands of rows may share one typo, or have one each
    for identity, used in uses.items():
        for other in used:
            if other not in known:
                if other not in hints and len(hints) < _MAX_HINTS:
                    near = nearest(other, known)
                    hints[other] = f"; nearest: {near}" if near else ""
                yield identity, f"{ROW}{other}: there is no row {other!r}{hints.get(other, '')}"
    try:
        TopologicalSorter(uses).prepare()
    except CycleError as error:
        circle = [*reversed(error.args[1])]
        yield circle[0], f"the rows use each other's pictures in a circle: {' → '.join(circle)}"


def heroes_first(ids: Sequence[str], uses: Mapping[str, tuple[str, ...]]) -> Sequence[int]:
    """Return the rows' positions, each after those whose pictures it uses, else in the manifest's order."""
    depths: dict[str, int] = {}
    for identity in TopologicalSorter(uses).static_order():
        depths[identity] = max((depths[other] + 1 for other in uses.get(identity, ())), default=0)
    if not depths:
        return range(len(ids))
    return sorted(range(len(ids)), key=lambda number: depths.get(ids[number], 0))
