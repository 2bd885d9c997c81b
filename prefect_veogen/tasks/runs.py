"""What Prefect shows and keeps of runs: names that say what is made, results that the caller can read."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from prefect.context import FlowRunContext

from prefect_veogen.errors import ConfigurationError
from prefect_veogen.models import ReceiptKey
from prefect_veogen.schedule import scheduled_start, take_of_slot

if TYPE_CHECKING:
    from prefect_veogen.models import Generation, GenerationRequest

KEEP_RESULT: Final[dict[str, Any]] = {"persist_result": True, "result_serializer": "json"}
"""For flows whose caller runs elsewhere: `@flow(**KEEP_RESULT)` stores the result where the server stores results.

As JSON, of types which are importable from `prefect_veogen`: a caller needs none of the flow's own files.
"""

NameOf = Callable[[Mapping[str, Any]], str]

_MAX_CHARACTERS = 60
_MARK_CHARACTERS = 6
_OPTIONS = ("aspect_ratio", "resolution", "duration", "mode", "style")
_INPUTS = ("image_urls", "video_urls", "audio_urls")


def name_flow_run(name: str | NameOf) -> Callable[[], str]:
    """Return a `flow_run_name` for Prefect's `flow`: a template, or a function of the flow's parameters.

    In a template stand the flow's parameters, defaults included, and `scheduled`, the run's scheduled start (UTC):
    `name_flow_run("{image_prompt} (take {take})")`. Long texts are shortened, a take is filled in by `take_of_slot`. A
    run that can't be named so has its flow's name: a wrong argument is reported by the run itself, not by its name.
    """
    name_of = _fill(name) if isinstance(name, str) else name

    def name_of_run() -> str:
        context = FlowRunContext.get()
        if context is None or context.flow is None:
            return "run"
        try:
            return name_of(_parameters(context))
        except Exception:  # noqa: BLE001 - the flow itself reports what is wrong with a parameter
            return context.flow.name

    return name_of_run


def name_task_run(verb: str, name_of: NameOf) -> Any:
    """Return a `task_run_name` for Prefect's `task`: the verb, then what it is about, made from the task's parameters.

    Prefect names a run before it begins: with a wrong argument the name is the verb alone, and the task raises.
    """

    def name_of_run(parameters: dict[str, Any]) -> str:
        try:
            return f"{verb} {name_of(parameters)}".strip()
        except Exception:  # noqa: BLE001 - as above
            return verb or "run"

    return name_of_run


def request_name(request: GenerationRequest) -> str:
    """Return what a request makes, in few words; different requests have different names."""
    options = [str(getattr(request, name)) for name in _OPTIONS if getattr(request, name) is not None]
    prompt = " ".join(request.prompt.split())
    name = f"{' '.join([request.model, *options])} (take {request.take}): {shorten(prompt)}"
    if len(prompt) <= _MAX_CHARACTERS and not any(getattr(request, name) for name in _INPUTS):
        return name
    # What the words don't show may be all that differs: the same motion for many pictures.
    return f"{name} #{ReceiptKey.parse(request.receipt_key('')).content[:_MARK_CHARACTERS]}"


def generation_name(generation: Generation) -> str:
    """Return which generation it is, and of what."""
    name = f"{generation.model or ''} {generation.id:.8}".strip()
    return f"{name}: {shorten(generation.prompt)}" if generation.prompt else name


def shorten(text: str, limit: int = _MAX_CHARACTERS) -> str:
    """Return a text on one line; of a long one the beginning and the end, which is where prompts of a series differ."""
    line = " ".join(text.split())
    end = limit // 3
    return line if len(line) <= limit else f"{line[: limit - end - 1].rstrip()}…{line[-end:].lstrip()}"


def _fill(template: str) -> NameOf:
    return lambda parameters: template.format(**{key: _show(value) for key, value in parameters.items()})


def _show(value: Any) -> Any:
    return shorten(value) if isinstance(value, str) else value


def _parameters(context: FlowRunContext) -> dict[str, Any]:
    """Return a flow run's parameters, defaults included, its scheduled start, and the take that this makes."""
    assert context.flow is not None
    known = inspect.signature(context.flow.fn).parameters.values()
    defaults = {item.name: item.default for item in known if item.default is not inspect.Parameter.empty}
    parameters = {"scheduled": scheduled_start(), **defaults, **(context.parameters or {})}
    if "take" in parameters:
        parameters["take"] = _take(parameters["take"])
    return parameters


def _take(take: Any) -> Any:
    try:
        return take_of_slot(take)
    except ConfigurationError:
        return take
