"""A person's decision in the middle of a flow: a form under the pictures, with the price of what comes next."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from itertools import count
from math import ceil
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from prefect import get_client, get_run_logger
from prefect.artifacts import acreate_markdown_artifact
from prefect.context import FlowRunContext
from prefect.flow_runs import apause_flow_run, asuspend_flow_run
from prefect.input import RunInput
from prefect.input.run_input import Keyset, keyset_from_base_key
from prefect.utilities.urls import url_for
from pydantic import AfterValidator, Field, ValidationError, create_model

from prefect_veogen.blocks import VeogenCredentials
from prefect_veogen.download.thumbnails import make_thumbnail
from prefect_veogen.errors import ChangeTheRequest, ChangeTheSetup, ConfigurationError
from prefect_veogen.models import (
    MAX_PROMPT_CHARACTERS,
    Asset,
    GenerationRequest,
    in_usd,
    text_problem,
)
from prefect_veogen.process.io_loop import on_io
from prefect_veogen.purchase.plan import Plan, ask_price, check_money
from prefect_veogen.tasks.artifacts import service_link
from prefect_veogen.tasks.generation import open_task_session
from prefect_veogen.tasks.markdown import code, image, literal
from prefect_veogen.tasks.offer import Offer, dearer, read_offer
from prefect_veogen.tasks.requests import plan_requests
from prefect_veogen.tasks.stores import StoreParameter

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun

    from prefect_veogen.session import Session

__all__ = [
    "Approval",
    "PictureRounds",
    "TimeoutSeconds",
    "Variants",
    "ask_for_approval",
    "clips_of",
]

MAX_VARIANTS = 24
MAX_TIMEOUT_SECONDS = 10 * 366 * 24 * 3600
_SHEET = "approval"
_POLL_SECONDS = 5
# Prefect fails a run whose pause is over; ours ends a little earlier, so that the run can end well.
_GRACE_SECONDS = 60

# What the form refuses, and with it the server, before the run goes on: to animate nothing.
_APPROVED_IF_ANIMATED = {
    "if": {"properties": {"decision": {"const": "animate"}}, "required": ["decision"]},
    "then": {"properties": {"approved": {"minItems": 1}}, "required": ["approved"]},
}


Variants = Annotated[int, Field(json_schema_extra={"minimum": 1, "maximum": MAX_VARIANTS})]
"""How many pictures there are to choose from; the form of a deployment refuses what `PictureRounds` would."""


def _check_timeout(seconds: float) -> float:
    """Return how long to wait for a decision, after validating it: before there is anything to decide about."""
    if not 0 < seconds <= MAX_TIMEOUT_SECONDS:
        raise ConfigurationError(
            f"A decision can't be waited for {seconds!r} seconds",
            next_step=f"Nothing was bought. Give a number of more than 0, at most {MAX_TIMEOUT_SECONDS} (ten years).",
        )
    return seconds


TimeoutSeconds = Annotated[
    float,
    Field(json_schema_extra={"exclusiveMinimum": 0, "maximum": MAX_TIMEOUT_SECONDS}),
    AfterValidator(_check_timeout),
]
"""How long a flow waits for a decision; refused by the form of a deployment, and when the flow is called."""


class Approval(RunInput):
    """What a person decides about the pictures, by a form: animate those approved, make others, or stop."""

    model_config = RunInput.model_config | {"json_schema_extra": _APPROVED_IF_ANIMATED}  # type: ignore[assignment]

    decision: Literal["animate", "again", "stop"] = Field(
        description="animate: make clips of the approved pictures. again: make as many other pictures. stop: spend "
        "nothing more."
    )
    approved: list[int] = Field(default=[], description="The numbers of the pictures to animate, from 1.")
    new_prompt: str = Field(
        default="",
        max_length=MAX_PROMPT_CHARACTERS,
        description="For other pictures of something else; empty: the same prompt once more.",
    )


class PictureRounds:
    """The requests for a picture in variants, round by round: each round has the next takes of its prompt.

    Those of a number T are T, T+1 …, of a text T, T.2 … Whoever begins again gets the same requests.
    """

    def __init__(self, picture: GenerationRequest, variants: int) -> None:
        if isinstance(variants, bool) or not 1 <= variants <= MAX_VARIANTS:
            raise ConfigurationError(
                f"variants={variants!r} is not valid",
                next_step=f"Nothing was bought. Give a whole number from 1 to {MAX_VARIANTS}.",
            )
        self.number = 0
        self._picture, self._variants, self._made = picture, variants, Counter[str]()
        self._prompt = picture.prompt

    def next_round(self, new_prompt: str = "") -> list[GenerationRequest]:
        """Return the next requests, of another prompt if there is one. Free."""
        requests = self.round_after(new_prompt)
        self.number += 1
        self._prompt = requests[0].prompt
        self._made[self._prompt] += self._variants
        return requests

    def round_after(self, new_prompt: str = "") -> list[GenerationRequest]:
        """Return what the next round would be, with the same prompt or another one. Free."""
        prompt = new_prompt.strip() or self._prompt
        fields, made = self._picture.set_fields(), self._made[prompt]
        takes = [_take_of_variant(self._picture.take, number) for number in range(made, made + self._variants)]
        return [GenerationRequest(**fields | {"prompt": prompt, "take": take}) for take in takes]


def clips_of(
    motion: GenerationRequest, pictures: Sequence[GenerationRequest], images: Iterable[Asset]
) -> list[GenerationRequest]:
    """Return the requests for clips of pictures, each with its picture as the input and its take. Free."""
    fields = motion.set_fields()
    return [
        GenerationRequest(**fields | {"image_urls": [image], "take": picture.take})
        for picture, image in zip(pictures, images, strict=True)
    ]


def _take_of_variant(take: int | str, number: int) -> int | str:
    if isinstance(take, int):
        return take + number
    return f"{take}.{number + 1}" if number else take


async def ask_for_approval(
    images: Sequence[Asset],
    *,
    clips: Sequence[GenerationRequest],
    rounds: PictureRounds,
    timeout_seconds: float,
    budget_usd: float | None = None,
    credentials: VeogenCredentials | str | None = None,
    store: StoreParameter | None = None,
) -> Approval:
    """Return what a person decides about pictures, given what `clips` of them and the next of `rounds` cost. Free.

    A run of a deployment is suspended, and a worker runs the flow from its start when the form is filled in; a run by
    hand waits in place. What the form can't know is asked again: money that would not do, a price that has risen since
    it was shown, pictures that are not those which were shown.

    When nobody has decided after `timeout_seconds`, a run by hand goes on with "stop"; a suspended one is failed.
    """
    _check_timeout(timeout_seconds)
    money: dict[str, Any] = {"credentials": credentials, "store": store, "budget_usd": budget_usd}
    problem = ""
    for attempt in count(1):
        key = f"{_SHEET}-{rounds.number}-{attempt}"
        offer = None
        if await _was_asked(key):
            decided = await _read_answer(_form(len(images)), key)
            # The time was over before anybody decided, or this one could not be: it was asked again, or is now.
            if decided is None or await _was_asked(f"{_SHEET}-{rounds.number}-{attempt + 1}"):
                continue
            answer = decided
        else:
            form, offer = await _make_form(images, clips, rounds, problem=problem, **money)
            answer = await _ask(form, key, timeout_seconds)
        problem = await _find_problem(answer, images, clips, rounds, offer=offer, key=key, money=money)
        if not problem:
            approved = sorted(answer.approved) if answer.decision == "animate" else []
            return answer.model_copy(update={"approved": approved})
    raise AssertionError("unreachable")


async def _make_form(
    images: Sequence[Asset],
    clips: Sequence[GenerationRequest],
    rounds: PictureRounds,
    *,
    problem: str,
    **money: Any,
) -> tuple[type[Approval], Offer]:
    """Return the form with what it says, after showing the pictures, and what it offers."""
    session = await open_task_session(money["credentials"], money["store"])
    sheet = await _show_pictures(session, images, rounds.number)
    again = rounds.round_after()
    plans = await plan_requests(*clips, **money), await plan_requests(*again, **money)
    offer = Offer.of(images, *plans, new_prompt_usd=await on_io(_price_unbought(session, again)))
    to_judge = f"Round {rounds.number}: {_pictures(len(images))} to judge: see {sheet} for their numbers."
    said = _describe(to_judge, *plans, offer.new_prompt_usd, problem)
    return _form(len(images), offer).with_initial_data(description=said), offer


async def _price_unbought(session: Session, alike: Sequence[GenerationRequest]) -> Decimal | None:
    """Return what requests which differ in their takes alone cost if none was bought before, `None` if unknown."""
    try:
        each = (await ask_price(session, alike[0])).usd
    except ChangeTheRequest:
        return None
    return None if each is None else each * len(alike)


async def _was_asked(key: str) -> bool:
    """Tell whether an earlier process of this run has asked a question.

    Prefect keeps the keys of a run's questions, and forgets them when a run that has ended is put back on the schedule,
    as one is that is healed; it would then throw away the answer and ask once more. The forms stay.
    """
    run = _flow_run()
    if key in (run.empirical_policy.pause_keys or ()):
        return True
    async with get_client() as client:
        return bool(await client.filter_flow_run_input(run.id, _keyset(key)["schema"], 1, set()))


async def _read_answer(form: type[Approval], key: str) -> Approval | None:
    """Return what was decided about a question that an earlier process has asked, `None` if nobody has decided."""
    try:
        return await form.aload(_keyset(key))
    except ValidationError:
        return None


def _flow_run() -> FlowRun:
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        raise ConfigurationError(
            "Only a flow run can ask for approval", next_step="Nothing was bought. Call it in a function with @flow."
        )
    return context.flow_run


def _form(variants: int, offer: Offer | None = None) -> type[Approval]:
    """Return the form for so many pictures, with limits that the server checks, and what it offers."""
    described = Approval.model_fields["approved"].description
    of_a_picture = Annotated[int, Field(ge=1, le=variants)]
    limits: Any = Field(default=[], description=described, max_length=variants, json_schema_extra={"uniqueItems": True})
    form = create_model("Approval", __base__=Approval, approved=(list[of_a_picture], limits))
    if offer is not None:
        extra: Any = {"json_schema_extra": _APPROVED_IF_ANIMATED | offer.in_schema()}
        form.model_config = form.model_config | extra
    return form


def _is_suspended() -> bool:
    """Tell whether this run is suspended while it waits, and doesn't wait in place."""
    run = _flow_run()
    return run.deployment_id is not None and run.parent_task_run_id is None


def _keyset(key: str) -> Keyset:
    """Return the names of a question's form and answer on the server."""
    return keyset_from_base_key(f"{'suspended' if _is_suspended() else 'paused'}-{key}")


async def _ask(form: type[Approval], key: str, timeout_seconds: float) -> Approval:
    run, seconds = _flow_run(), ceil(timeout_seconds)
    if _is_suspended():
        return cast("Approval", await asuspend_flow_run(wait_for_input=form, timeout=seconds, key=key))
    get_run_logger().info("Waiting for a decision: open this run in Prefect's UI, and resume it. Run: %s", run.id)
    options: dict[str, Any] = {"timeout": seconds + _GRACE_SECONDS, "poll_interval": _POLL_SECONDS, "key": key}
    try:
        async with asyncio.timeout(timeout_seconds):
            return cast("Approval", await apause_flow_run(wait_for_input=form, **options))
    except TimeoutError:
        async with get_client() as client:
            is_answered = (await client.read_flow_run(run.id)).state_type == "RUNNING"
        if is_answered:  # between the last poll and the end
            return await form.aload(_keyset(key))
        get_run_logger().warning("Nobody has decided within %s seconds: nothing more is bought", timeout_seconds)
        return Approval(decision="stop")


async def _find_problem(
    answer: Approval,
    images: Sequence[Asset],
    clips: Sequence[GenerationRequest],
    rounds: PictureRounds,
    *,
    offer: Offer | None,
    key: str,
    money: Mapping[str, Any],
) -> str:
    """Return why a decision can't be carried out, or not for what the form said; empty if it can."""
    if answer.decision == "stop":
        return ""
    offer = offer or await read_offer(_flow_run().id, _keyset(key)["schema"])
    if offer and offer.differs_from(images):
        return "The pictures are others by now than those that were shown"
    if answer.decision == "animate":
        wanted = [clips[number - 1] for number in answer.approved]
        shown_usd = None if offer is None else offer.usd_of(answer.approved)
    elif problem := text_problem(answer.new_prompt):
        return f"new_prompt: {problem}"
    else:
        wanted, again = rounds.round_after(answer.new_prompt), rounds.round_after()
        shown_usd = None if offer is None else offer.again_usd if wanted == again else offer.new_prompt_usd
    await on_io(_forget_prices(await open_task_session(money["credentials"], money["store"])))
    plan = await plan_requests(*wanted, **money)
    if refused := _refusal_of(plan):
        return refused
    try:
        check_money(plan, "That")
    except ChangeTheSetup as refusal:
        return refusal.message
    return dearer(plan, shown_usd)


async def _forget_prices(session: Session) -> None:
    """Have the prices read anew: the form may have been open for days, and one that has risen was not agreed to."""
    session.catalogue.forget()


def _describe(to_judge: str, clips: Plan, again: Plan, new_prompt_usd: Decimal | None, problem: str) -> str:
    each = max((item.usd for item in clips.items if item.usd is not None), default=None)
    differs = new_prompt_usd is not None and new_prompt_usd != again.total_usd
    lines = [
        f"**{literal(problem)}.** Nothing was bought." if problem else "",
        to_judge,
        f"- **animate**: {_price_or_refusal(clips)} for all"
        + (f", {in_usd(each)} for each approved picture" if each is not None else ""),
        f"- **again**: {_price_or_refusal(again)} for {_pictures(len(again.items), 'other ')}"
        + (f", {in_usd(new_prompt_usd)} with a new prompt" if differs else ""),
        "- **stop**: nothing",
        *(f"\nLeft of the budget {code(left.budget)}: {in_usd(left.left_usd)}" for left in clips.budgets),
    ]
    return "\n".join(line for line in lines if line)


def _refusal_of(plan: Plan) -> str:
    return next((item.problem.message for item in plan.problems if item.problem is not None), "")


def _price_or_refusal(plan: Plan) -> str:
    refused = _refusal_of(plan)
    return f"would be refused ({literal(refused)})" if refused else plan.price


def _pictures(number: int, which: str = "") -> str:
    return f"{number} {which}picture{'' if number == 1 else 's'}"


async def _show_pictures(session: Session, images: Sequence[Asset], number: int) -> str:
    """Leave an artifact that shows the pictures with their numbers; return how the form refers to it."""
    pictures = await on_io(_make_thumbnails(session, images))
    shown = [
        f"## {position}\n\n{f'{image(str(position), picture)}{chr(10) * 2}' if picture else ''}"
        f"{code(asset.uri)}{service_link(asset)}"
        for position, (asset, picture) in enumerate(zip(images, pictures, strict=True), 1)
    ]
    title = f"Pictures to approve, round {number}"
    sheet = await acreate_markdown_artifact("\n\n".join([f"# {title}", *shown]), key=_SHEET, description=title)
    # Prefect knows the addresses of runs, not those of artifacts, which are beside them.
    ui, is_known, _ = (url_for("flow-run", obj_id=_flow_run().id) or "").rpartition("/runs/")
    return f"the artifact [{_SHEET}](<{ui}/artifacts/artifact/{sheet}>)" if is_known else f"the artifact `{_SHEET}`"


async def _make_thumbnails(session: Session, images: Sequence[Asset]) -> list[str | None]:
    return list(await asyncio.gather(*(make_thumbnail(session.store, asset) for asset in images)))
