"""What models make, compared with what is needed of them: a picture to begin with, a clip to end with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect_veogen.campaign.columns import MOTION
from prefect_veogen.models import Kind

if TYPE_CHECKING:
    from prefect_veogen.campaign.rows import Row
    from prefect_veogen.session import Session

_PLURAL = {Kind.IMAGE: "pictures", Kind.VIDEO: "clips"}


class Kinds:
    """What models make, each asked for once."""

    def __init__(self, session: Session) -> None:
        self._catalogue = session.catalogue
        self._made: dict[str, Kind | None] = {}

    async def find_kind(self, model: str) -> Kind | None:
        """Return what a model makes; `None` if the service doesn't say, or doesn't know it. Free."""
        if model not in self._made:
            self._made[model] = await self._catalogue.find_kind(model)
        return self._made[model]

    async def find_problem(self, model: str, needed: Kind) -> str | None:
        """Return why a model can't make what is needed of it; `None` if it can, or nobody knows. Free."""
        if (made := await self.find_kind(model)) in (None, needed):
            return None
        need = _PLURAL[needed]
        return f"{model} makes {_PLURAL[made]}, where {need} are needed; give a model that makes {need}"

    async def find_problems(self, row: Row) -> list[str]:
        """Return which models of a row with a motion can't make its picture, or its clip. Free."""
        if row.motion is None:
            return []
        needs = [("model", row.request.model, Kind.IMAGE), (f"{MOTION}model", row.motion["model"], Kind.VIDEO)]
        found = [(field, await self.find_problem(model, needed)) for field, model, needed in needs]
        return [f"{field}: {problem}" for field, problem in found if problem is not None]
