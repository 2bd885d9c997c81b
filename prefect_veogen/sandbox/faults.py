"""The table of faults, and the board of those that are armed."""

from __future__ import annotations

import difflib
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

Place = Literal["submit", "fate", "look", "list", "shown", "model", "account", "media"]

DEFAULT_REFUSAL = "The prompt was rejected by the content policy."


@dataclass(frozen=True)
class FaultKind:
    """One row of the table: where the fault strikes, what a client sees, and its parameters with defaults."""

    name: str
    place: Place
    summary: str
    parameters: Mapping[str, Any] = field(default_factory=dict)


def _table(*kinds: FaultKind) -> Mapping[str, FaultKind]:
    return MappingProxyType({kind.name: kind for kind in kinds})


FAULTS: Mapping[str, FaultKind] = _table(
    FaultKind("lost-answer-after-charge", "submit", "Bought; the connection closes without a byte of a response."),
    FaultKind("lost-answer-before-charge", "submit", "Nothing bought; the connection closes without a response."),
    FaultKind("500-after-charge", "submit", "Bought, but the response is a 500 with a JSON body."),
    FaultKind("502-after-charge", "submit", "Bought, but a gateway responds 502 with an HTML page."),
    FaultKind("500-before-charge", "submit", "Nothing bought; 500 with a JSON body."),
    FaultKind("503-before-charge", "submit", "Nothing bought; a gateway responds 503 with an HTML page."),
    FaultKind("garbled-json-after-charge", "submit", "Bought; the 201 has half a JSON document."),
    FaultKind("empty-body-after-charge", "submit", "Bought; the 201 has an empty body."),
    FaultKind("html-after-charge", "submit", "Bought; the 201 is an HTML page."),
    FaultKind("slow-answer", "submit", "Bought; the response comes `seconds` (real) later.", {"seconds": 5.0}),
    FaultKind(
        "429", "submit", "Nothing bought; 429 with Retry-After `retry_after` (real seconds).", {"retry_after": 1}
    ),
    FaultKind("402", "submit", "Nothing bought; 402 as if the balance were short."),
    FaultKind("401", "submit", "Nothing bought; 401 as if the token had been revoked."),
    FaultKind(
        "422",
        "submit",
        "Nothing bought; 422 with `message` for `field`.",
        {"field": "prompt", "message": DEFAULT_REFUSAL},
    ),
    FaultKind(
        "failed",
        "fate",
        "The next generations bought (or polled while running) fail with `reason`; the charge is refunded.",
        {"reason": DEFAULT_REFUSAL},
    ),
    FaultKind("stuck", "fate", "The next generations bought (or polled while running) stay `processing` forever."),
    FaultKind("look-500", "look", "GET of a generation or the list returns 500."),
    FaultKind("look-dropped", "look", "GET of a generation or the list: connection closed without a response."),
    FaultKind("look-garbled", "look", "GET of a generation or the list returns half a JSON document."),
    FaultKind("look-html", "look", "GET of a generation or the list returns 200 with an HTML page."),
    FaultKind(
        "look-429", "look", "GET of a generation or the list returns 429 with `retry_after`.", {"retry_after": 1}
    ),
    FaultKind("look-401", "look", "GET of a generation or the list returns 401: the token was revoked meanwhile."),
    FaultKind("look-404", "look", "GET of a generation returns 404 although it exists; the list is not touched."),
    FaultKind("look-slow", "look", "GET of a generation or the list returns `seconds` (real) later.", {"seconds": 5.0}),
    FaultKind("list-500", "list", "GET of the list returns 500; polls by id work."),
    FaultKind("hidden-from-list", "shown", "The list leaves matching generations out; polls by id show them."),
    FaultKind(
        "unknown-status", "shown", "Matching generations show the status `status`.", {"status": "awaiting_review"}
    ),
    FaultKind("completed-without-output", "shown", "Completed generations are shown with `output` null."),
    FaultKind("model-500", "model", "GET of the catalogue or of a model returns 500."),
    FaultKind("model-html", "model", "GET of the catalogue or of a model returns 200 with an HTML page."),
    FaultKind("model-dropped", "model", "GET of the catalogue or of a model: connection closed without a response."),
    FaultKind("balance-500", "account", "GET of the account, its usage or the balance returns 500."),
    FaultKind(
        "media-truncated",
        "media",
        "Right Content-Length, but the connection closes after `share` of the bytes.",
        {"share": 0.5},
    ),
    FaultKind(
        "media-truncated-silently",
        "media",
        "Only `share` of the bytes with a Content-Length to match: only the file's structure shows it.",
        {"share": 0.5},
    ),
    FaultKind("media-reset", "media", "TCP reset after `share` of the bytes.", {"share": 0.5}),
    FaultKind(
        "media-slow", "media", "The bytes trickle at `bytes_per_second` (real seconds).", {"bytes_per_second": 4096}
    ),
    FaultKind(
        "media-stalled",
        "media",
        "After `share` of the bytes nothing comes for `seconds` (real), then the connection closes.",
        {"share": 0.5, "seconds": 3600.0},
    ),
    FaultKind("media-expired", "media", "403; this URL stays expired and the next poll shows a fresh one."),
    FaultKind("media-404", "media", "404 with an HTML page."),
    FaultKind("media-410", "media", "410 with an HTML page."),
    FaultKind("media-500", "media", "500 with an HTML page."),
    FaultKind("media-503", "media", "503 with an HTML page and Retry-After `retry_after`.", {"retry_after": 1}),
    FaultKind("media-html", "media", "200 with an HTML page (text/html) in place of the file."),
    FaultKind("media-json", "media", "200 with a JSON error (application/json) in place of the file."),
    FaultKind(
        "media-html-as-media", "media", "200 with an HTML page that claims the Content-Type of the file it replaces."
    ),
    FaultKind("media-empty", "media", "200 with the right type and no bytes."),
    FaultKind(
        "media-wrong-length",
        "media",
        "The whole file, but Content-Length is off by `extra` bytes (negative: too short).",
        {"extra": 1024},
    ),
    FaultKind(
        "media-wrong-type",
        "media",
        "A PNG instead of a video, an MP4 instead of a picture, under the expected content type.",
    ),
    FaultKind("media-redirect", "media", "302 to another path of the media host, which serves the file."),
    FaultKind("media-redirect-loop", "media", "302 to a path which redirects to itself."),
    FaultKind(
        "media-redirect-private",
        "media",
        "302 to `location`, a private address no client should follow.",
        {"location": "http://169.254.169.254/latest/meta-data/"},
    ),
    FaultKind("media-no-range", "media", "A Range request gets 200 and the whole file."),
    FaultKind(
        "media-changed",
        "media",
        "The file differs, ETag and bytes, from the one an earlier request got; first requests are spared.",
    ),
    FaultKind(
        "media-huge",
        "media",
        "From now on this video has exactly `size_bytes` bytes: a real clip, then free space.",
        {"size_bytes": 3_000_000_000},
    ),
)
"""Every fault by name."""

MIN_HUGE_FILE_BYTES = 200_000


@dataclass(frozen=True)
class Subject:
    """What a request is about, for the filters of faults."""

    id: str
    model: str
    kind: str
    prompt: str


class Fault:
    """An armed fault: how often it struck and how often it still will.

    ``times_left`` is None for a fault that never wears off.
    """

    def __init__(
        self,
        kind: FaultKind,
        *,
        times: int | None,
        after: int,
        filters: Mapping[str, str],
        parameters: Mapping[str, Any],
    ) -> None:
        self.kind = kind
        self.parameters = {**kind.parameters, **parameters}
        self.filters = dict(filters)
        self.times_left = times
        self.skips_left = after
        self.applied = 0
        self._offered: set[str] = set()

    @property
    def name(self) -> str:
        return self.kind.name

    def describe(self) -> dict[str, Any]:
        """Show the fault as the control routes do."""
        return {
            "name": self.name,
            "times_left": self.times_left,
            "skips_left": self.skips_left,
            "applied": self.applied,
            "filters": self.filters,
            "parameters": self.parameters,
            "summary": self.kind.summary,
        }

    def matches(self, subject: Subject) -> bool:
        return (
            self.filters.get("model", subject.model) == subject.model
            and self.filters.get("kind", subject.kind) == subject.kind
            and self.filters.get("prompt", "") in subject.prompt
        )

    def is_used_up(self) -> bool:
        return self.times_left is not None and self.times_left <= 0

    def use_once(self) -> bool:
        """Use the fault up once; False while it still spares requests."""
        if self.skips_left:
            self.skips_left -= 1
            return False
        if self.times_left is not None:
            self.times_left -= 1
        self.applied += 1
        return True

    def offer(self, subject: Subject) -> bool:
        """Record that the fault was offered this generation; False if it had been before."""
        if subject.id in self._offered:
            return False
        self._offered.add(subject.id)
        return True

    def progress(self) -> str:
        """Describe how often the fault struck and how often it still will."""
        left = "never wears off" if self.times_left is None else f"{self.times_left} left"
        return f"applied {self.applied}, {left}"

    def __repr__(self) -> str:
        return f"<Fault {self.name}: {self.progress()}>"


class FaultBoard:
    """The armed faults, oldest first; at most one of them strikes a request at each place."""

    def __init__(self) -> None:
        self._armed: list[Fault] = []
        self._lock = threading.Lock()

    def arm(
        self,
        name: str,
        *,
        times: int | None = 1,
        after: int = 0,
        model: str | None = None,
        kind: str | None = None,
        prompt: str | None = None,
        **parameters: Any,
    ) -> Fault:
        """Arm a fault for the next ``times`` matching requests (None: all), after sparing ``after`` of them.

        Raises:
            ValueError: unknown name, parameter or value; the message names the nearest known one.
        """
        known = _find_fault(name)
        _check_count("times", times, least=1, may_be_none=True)
        _check_count("after", after, least=0)
        if kind not in (None, "image", "video"):
            raise ValueError(f"kind is 'image' or 'video', not {kind!r}")
        filters = {"model": model, "kind": kind, "prompt": prompt}
        given = {filter_name: value for filter_name, value in filters.items() if value is not None}
        _check_parameters(known, parameters)
        fault = Fault(known, times=times, after=after, filters=given, parameters=parameters)
        with self._lock:
            self._armed.append(fault)
        return fault

    def clear(self) -> None:
        """Disarm all faults."""
        with self._lock:
            self._armed.clear()

    def list_armed(self) -> tuple[Fault, ...]:
        """List the faults that can still strike, oldest first."""
        with self._lock:
            self._armed = [fault for fault in self._armed if not fault.is_used_up()]
            return tuple(self._armed)

    def strike(
        self,
        place: Place,
        subjects: Sequence[Subject] = (),
        *,
        applicable: Callable[[Fault], bool] = lambda _fault: True,
    ) -> Fault | None:
        """Pick and use up the oldest fault for a request at ``place`` about ``subjects``, if there is one."""
        if not self._armed:
            return None
        with self._lock:
            for fault in self._armed:
                if fault.kind.place != place or fault.is_used_up() or not applicable(fault):
                    continue
                if fault.filters and not any(fault.matches(subject) for subject in subjects):
                    continue
                if fault.use_once():
                    return fault
        return None

    def strike_subjects(
        self, name: str, subjects: Iterable[Subject], *, once_each: bool = False
    ) -> tuple[Fault, frozenset[str]] | None:
        """Pick and use up the oldest fault ``name`` that concerns some ``subjects``; return it and their ids."""
        if not self._armed:
            return None
        candidates = list(subjects)
        with self._lock:
            for fault in self._armed:
                if fault.name != name or fault.is_used_up():
                    continue
                concerned = frozenset(
                    subject.id
                    for subject in candidates
                    if fault.matches(subject) and (not once_each or fault.offer(subject))
                )
                if concerned and fault.use_once():
                    return fault, concerned
        return None


def _find_fault(name: object) -> FaultKind:
    if isinstance(name, str) and name in FAULTS:
        return FAULTS[name]
    raise ValueError(f"unknown fault {name!r}{_suggest(str(name), FAULTS)}")


def _suggest(name: str, known: Iterable[str]) -> str:
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.3)
    listed = f"; known: {', '.join(names)}" if names else "; there are none"
    return f"; did you mean {close[0]!r}?" if close else listed


def _check_count(name: str, value: object, *, least: int, may_be_none: bool = False) -> None:
    if value is None and may_be_none:
        return
    if type(value) is not int or value < least:
        raise ValueError(f"{name} is a whole number of {least} or more{' or None' * may_be_none}, not {value!r}")


def _check_parameters(kind: FaultKind, parameters: Mapping[str, Any]) -> None:
    for name, value in parameters.items():
        if name not in kind.parameters:
            known = (*kind.parameters, "times", "after", "model", "kind", "prompt")
            raise ValueError(f"fault {kind.name!r} has no parameter {name!r}{_suggest(name, known)}")
        example = kind.parameters[name]
        # A reason may be text or an object: what `error` of a failed generation holds is not documented.
        valid = isinstance(value, str | dict) if name == "reason" else _same_type(value, example)
        if not valid:
            wanted = type(example).__name__
            raise ValueError(f"{name} of {kind.name!r} is a {wanted} such as {example!r}, not {value!r}")
    share = parameters.get("share", 0.5)
    if not 0 <= share < 1:
        raise ValueError(f"share is a part of the file from 0 up to but not including 1, not {share!r}")
    for name in ("seconds", "bytes_per_second", "retry_after"):
        if parameters.get(name, 1) < 0 or (name == "bytes_per_second" and parameters.get(name, 1) < 1):
            raise ValueError(f"{name} is a positive number, not {parameters[name]!r}")
    if parameters.get("size_bytes", MIN_HUGE_FILE_BYTES) < MIN_HUGE_FILE_BYTES:
        raise ValueError(f"size_bytes is at least {MIN_HUGE_FILE_BYTES}, not {parameters['size_bytes']!r}")


def _same_type(value: object, default: object) -> bool:
    if isinstance(value, bool):
        return False
    if isinstance(default, float):
        return isinstance(value, int | float)
    return isinstance(value, type(default))
