"""A campaign's rows: what each asks for, what it takes along, and which other rows' pictures it uses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from prefect_veogen.campaign.items import CampaignItem, ItemStatus
from prefect_veogen.campaign.packed import Packed
from prefect_veogen.campaign.references import heroes_first, reference_problems, used_rows
from prefect_veogen.models import Asset, GenerationRequest


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a campaign: the request for a picture and, with `motion`, how to animate it.

    `labels` are written into its purchases, `carried` are the manifest's own columns which it takes along into the
    results. An input `row:ID` of the request stands for the picture of another row.
    """

    id: str
    request: GenerationRequest
    motion: Mapping[str, Any] | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    carried: Mapping[str, Any] = field(default_factory=dict)
    where: str = field(default="", compare=False)
    """Where it stands in the manifest, as an error names it."""

    @property
    def key(self) -> tuple[str, str]:
        """What distinguishes it in its campaign: its id and, among its variants, the take."""
        return self.id, str(self.request.take)

    @property
    def uses(self) -> tuple[str, ...]:
        """The ids of the rows whose pictures it uses."""
        return used_rows(self.request)

    def motion_request(self, image: Asset) -> GenerationRequest:
        """Return the request for the clip that begins with the picture."""
        assert self.motion is not None
        return GenerationRequest(**{**self.motion, "image_urls": [image], "take": self.request.take})


class Rows(Packed[Row]):
    """A manifest's rows, in its order, in little memory."""

    def __init__(self, rows: Iterable[Row] = (), kept: Mapping[tuple[str, str], CampaignItem] | None = None) -> None:
        self._keys: list[tuple[str, str]] = []
        self._lenders: dict[str, tuple[int, int]] = {}
        self.uses: dict[str, tuple[str, ...]] = {}
        """The ids of the rows whose pictures a row uses, by its id."""
        self.kept = dict(kept or {})
        """How rows ended in an earlier run that are not to be made again, by their keys."""
        self.unproven = {*self.kept}
        """The keys of what is kept without having been compared with what its row asks for now."""
        super().__init__(rows)

    def append(self, item: Row) -> None:
        if not item.where:
            item = replace(item, where=f"row {len(self) + 1} ({item.id})")
        self._keys.append(item.key)
        # By their takes, T, T.2, T.3 …: a table of results may come back in any order.
        lender = len(str(item.request.take)), len(self)
        self._lenders[item.id] = min(lender, self._lenders.get(item.id, lender))
        if item.uses:
            self.uses[item.id] = tuple(dict.fromkeys((*self.uses.get(item.id, ()), *item.uses)))
        super().append(item)

    @property
    def used(self) -> set[str]:
        """The ids of the rows whose pictures others use."""
        return {identity for used in self.uses.values() for identity in used}

    def keep(self, items: Iterable[CampaignItem]) -> None:
        """Leave out what has ended well before: it is reported as it ended."""
        kept = {item.key: item for item in items if item.status is ItemStatus.OK}
        self.kept |= kept
        self.unproven |= kept.keys()

    @property
    def heroes_first(self) -> Sequence[int]:
        """The positions of all rows, each after those whose pictures it uses."""
        return heroes_first([identity for identity, _ in self._keys], self.uses) if self.uses else range(len(self))

    @property
    def to_make(self) -> Sequence[int]:
        """The positions of the rows to be made, each after those whose pictures it uses.

        Left out is what is kept, but for the rows whose pictures are used: they are there, and free.
        """
        order = self.heroes_first
        if not self.kept:
            return order
        made = {number for number, key in enumerate(self._keys) if key not in self.kept}
        pending = [identity for number in made for identity in self[number].uses]
        while pending:
            number = self._lender(pending.pop())
            if number not in made:
                made.add(number)
                pending += self[number].uses
        return [number for number in order if number in made]

    def by_id(self, identity: str) -> Row:
        """Return the row of an id; of several variants the first."""
        return self[self._lender(identity)]

    def lends(self, number: int) -> bool:
        """Tell whether the row at a position is the one whose picture others get: of several variants the first."""
        return self._lender(self._keys[number][0]) == number

    def _lender(self, identity: str) -> int:
        return self._lenders[identity][1]

    def reference_problems(self, known: Iterable[str] = ()) -> list[str]:
        """Return what is wrong with the use of other rows' pictures; `known` are ids that exist, if in wrong rows."""
        found = reference_problems(self.uses, {*self._lenders, *known})
        return [f"{self.by_id(identity).where}: image_urls: {problem}" for identity, problem in found]

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Rows:
        """Return rows as such a list."""
        return rows if isinstance(rows, cls) else cls(rows)
