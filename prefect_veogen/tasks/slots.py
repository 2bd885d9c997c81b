"""Slots of a schedule, and the names of what is published of them: all are checked before anything is bought."""

from __future__ import annotations

import mimetypes
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Literal

from prefect_veogen.campaign.rows import Rows
from prefect_veogen.download.publication import check_publication_key, publication_key_problem
from prefect_veogen.errors import ConfigurationError
from prefect_veogen.models import Kind
from prefect_veogen.schedule import take_of_slot

Option = Literal["publish_as", "latest"]

_LONGEST_ENDING = ".webp"
_A = {Kind.IMAGE: "a picture", Kind.VIDEO: "a clip"}
_PLACEHOLDER = re.compile(r"\{(?:id|take|ext|scheduled:[^{}]+)\}")


@dataclass(frozen=True, slots=True)
class Slot:
    """One slot of a schedule: the campaign that is made for it, and under which names its assets are published."""

    scheduled: datetime
    name: str
    rows: Rows
    publish_as: str | None = None
    latest: str | None = None
    take: int | str | None = None

    def keys_of(self, identity: str, take: str, ending: str = ".ext") -> dict[str, datetime | None]:
        """Return where the asset of a row is published; with a time, only if there is nothing of a later slot."""
        return {
            published_name(template, self.scheduled, identity, take, ending): scheduled
            for template, scheduled in ((self.publish_as, None), (self.latest, self.scheduled))
            if template is not None
        }


def published_name(template: str, scheduled: datetime, identity: str, take: str, ending: str = ".ext") -> str:
    """Return the name of a row's copy.

    Raises:
        ConfigurationError: a time in it never changes, or is none.
    """
    values = {"{id}": identity, "{take}": take, "{ext}": ending}

    def value_of(found: re.Match[str]) -> str:
        return values[found[0]] if found[0] in values else str(take_of_slot(found[0], scheduled))

    return _PLACEHOLDER.sub(value_of, template)  # in one pass: an id may look like a placeholder


def templates_of(publish_as: str | None, latest: str | None) -> list[tuple[Option, str]]:
    """Return the templates that are given, by their options.

    Raises:
        ConfigurationError: one can't be filled in.
    """
    options: tuple[tuple[Option, str | None], ...] = (("publish_as", publish_as), ("latest", latest))
    given = [(option, template) for option, template in options if template is not None]
    for option, template in given:
        check_template(option, template)
    return given


def check_template(option: Option, template: str) -> None:
    """Validate what a template has in its braces.

    Raises:
        ConfigurationError: it can't be filled in.
    """
    if ".{ext}" in template:
        raise ConfigurationError(
            f"{option}={template!r} would have two dots: {{ext}} brings its own",
            next_step=f"Nothing was bought. Write {option}={template.replace('.{ext}', '{ext}')!r}.",
        )
    try:
        rest = published_name(template, datetime.now(UTC), "", "", "")
    except ConfigurationError:
        rest = template
    if {"{", "}"} & {*rest}:
        raise ConfigurationError(
            f"{option}={template!r} can't be filled in",
            next_step="Nothing was bought. Its braces may be {id}, {take}, {ext} (.png or .mp4, with its dot) and "
            "times such as {scheduled:%F}.",
        )


def check_names(templates: Sequence[tuple[Option, str]], slots: Sequence[Slot]) -> None:
    """Validate the names of all copies that the templates make.

    Raises:
        ConfigurationError: one is not valid, or two are the same.
    """
    published: dict[str, _Copy] = {}
    for slot in slots:
        latest: dict[str, _Copy] = {}  # the newest slot replaces what is there
        for option, template in templates:
            for copy in _copies(option, template, slot, slots):
                for written in (copy.name, f"{copy.name}.json"):  # the copy, and its sidecar
                    seen = published if option == "publish_as" or written in published else latest
                    other = seen.setdefault(written, copy)
                    if (other.owner, other.name) != (copy.owner, copy.name):
                        raise _same_name(other, copy, written, slots)


@dataclass(frozen=True, slots=True)
class _Copy:
    option: Option
    template: str
    name: str
    owner: str


def _copies(option: Option, template: str, slot: Slot, slots: Sequence[Slot]) -> Iterator[_Copy]:
    """Yield the copies of a slot's rows whose names are valid.

    Raises:
        ConfigurationError: one's is not.
    """
    for identity, take in (row.key for row in slot.rows):
        longest = published_name(template, slot.scheduled, identity, take, _LONGEST_ENDING)
        if publication_key_problem(longest) is not None:
            _check_id(longest, published_name(template, slot.scheduled, "id", take, _LONGEST_ENDING), identity)
            check_publication_key(longest, _example(option, _telling_apart(slots)))
        name = published_name(template, slot.scheduled, identity, take)
        yield _Copy(option, template, name, f"{identity} (take {take})")


def _same_name(one: _Copy, other: _Copy, written: str, slots: Sequence[Slot]) -> ConfigurationError:
    if one.option == other.option:
        return ConfigurationError(
            f"{one.owner} and {other.owner} would both be published as {written}",
            next_step=f"Nothing was bought. {_apart(other.option, other.template, slots)}",
        )
    return ConfigurationError(
        f"{one.owner} by {one.option} and {other.owner} by {other.option} would both be published as {written}",
        next_step="Nothing was bought. Let each option have a folder of its own, as in "
        f"{other.option}={f'{other.option}/{other.template}'!r}.",
    )


def kind_of_ending(template: str) -> Kind | None:
    """Return what consumers take copies for, by the ending of their name; `None` if it says nothing, as `{ext}`."""
    kind = (mimetypes.guess_type(template)[0] or "").partition("/")[0]
    return Kind(kind) if kind in [*Kind] else None


def check_kinds(option: Option, template: str, slots: Sequence[Slot], kinds: Mapping[str, Kind]) -> None:
    """Validate that the ending of a name is one for what the rows make; `kinds` are those of the known models.

    Raises:
        ConfigurationError: one makes something else, which would be bought and not published.
    """
    wanted = kind_of_ending(template)
    for row in slots[0].rows:
        made = Kind.VIDEO if row.motion is not None else kinds.get(row.request.model)
        if made is not None and wanted is not None and made is not wanted:
            right = template.removesuffix(PurePosixPath(template).suffix) + "{ext}"
            raise ConfigurationError(
                f"{row.where} makes {_A[made]}, and {option}={template!r} is the name of {_A[wanted]}",
                next_step=f"Nothing was bought. Write {option}={right!r}: {{ext}} is the right ending, with its dot.",
            )


def _check_id(name: str, otherwise: str, identity: str) -> None:
    """Refuse an id that makes a name invalid which would be valid with another one."""
    if publication_key_problem(otherwise) is None:
        raise ConfigurationError(
            f"The row {identity!r} can't be published as {name!r}: {publication_key_problem(name)}",
            next_step="Nothing was bought. Change the row's id, which stands for {id}.",
        )


def _apart(option: Option, template: str, slots: Sequence[Slot]) -> str:
    """Return what makes the names differ as their rows do."""
    needed = _telling_apart(slots)
    missing = [placeholder for placeholder in needed if placeholder not in template]
    names = {published_name(template, slot.scheduled, *slot.rows[0].key) for slot in slots}
    if option == "publish_as" and len(names) < len(slots):
        missing.insert(0, "{scheduled:%F}")
    what = f"Put {' and '.join(missing)} into" if missing else "Let the parts stand apart, and the ending last, in"
    return f"{what} {option}, as in {_example(option, needed)}."


def _telling_apart(slots: Sequence[Slot]) -> list[str]:
    """Return what tells the rows of a slot apart."""
    keys = [row.key for row in slots[0].rows]
    ids = {identity for identity, _ in keys}
    return ["{id}"] * (len(ids) > 1) + ["{take}"] * (len(keys) > len(ids))


def _example(option: Option, needed: Sequence[str]) -> str:
    return f"daily/{'-'.join(['latest' if option == 'latest' else '{scheduled:%F}', *needed])}{{ext}}"
