"""The kind of Prefect task that this package's are: retried where that helps, and honest about what cost nothing."""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.context import TaskRunContext
from prefect.states import Completed
from prefect.tasks import Task

from prefect_veogen.errors import VeogenError

if TYPE_CHECKING:
    from collections.abc import Callable

    from prefect.client.schemas.objects import TaskRun

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")
Value = TypeVar("Value")


def is_retryable(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """Retry what `prefect_veogen.errors` calls retryable, and says why."""
    return isinstance(state.data, VeogenError) and state.data.retryable


# For tasks which buy nothing: a blip must not end a run before it began, nor after all is paid for.
FREE: dict[str, Any] = {
    "retries": 4,
    "retry_delay_seconds": [2, 5, 15, 45],
    "retry_condition_fn": is_retryable,
    "cache_policy": NO_CACHE,
}


class KeepsItsKind:
    """For kinds of Prefect's tasks and flows: `with_options` returns the same kind, where Prefect's returns its own."""

    if not TYPE_CHECKING:  # what it takes and returns is as Prefect declares it

        def with_options(self, **options: Any) -> Any:
            same_kind = copy(self)
            vars(same_kind).update(vars(super().with_options(**options)))
            return same_kind


class Step(KeepsItsKind, Task[Parameters, Result]):
    """A task that may end as "Cached" with a reason; awaited, it gives the value like any other."""

    if not TYPE_CHECKING:  # declared as Prefect's own

        def __call__(self, *args: Any, return_state: bool = False, **kwargs: Any) -> Any:
            ended = super().__call__(*args, return_state=return_state, **kwargs)
            return ended if return_state or not hasattr(ended, "__await__") else _await_value(ended)


async def _await_value(ended: Any) -> Any:
    # Of a task that returns a state Prefect gives the state, where it gives the value of all others.
    result = await ended
    return await result.aresult() if isinstance(result, State) else result


def step(**options: Any) -> Callable[[Callable[Parameters, Result]], Task[Parameters, Result]]:
    """Return Prefect's `task` decorator for tasks that end by `reused` when nothing had to be done."""
    return lambda function: Step(function, **options)


def reused(value: Value, reason: str) -> Value:
    """Return a task's value so that its run ends as "Cached", Prefect's word for what cost nothing, with the reason.

    Anywhere else than in a `step` it is the value.
    """
    context = TaskRunContext.get()
    if context is None or not isinstance(context.task, Step):
        return value
    return cast("Value", Completed(name="Cached", message=reason, data=value))
