"""State lives where it lasts: which stores a run of a deployment may use."""

from __future__ import annotations

import asyncio
import os
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from prefect.runtime import deployment, flow_run

from prefect_veogen.errors import ConfigurationError, TryAgainLater
from prefect_veogen.store import is_absolute

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun


async def check_store_is_durable(place: object, run: FlowRun | None = None) -> None:
    """Validate the store of a run: any for a run started by hand, only an absolute one for a deployment's run. Free.

    A deployment's run may have a fresh working directory which is deleted after it (`git_clone`, a container): with it
    the ledger, the caps and the paid files. `run` is the flow run to check; unset, the current one.

    Raises:
        ConfigurationError: the store is relative, or the default, and the run belongs to a deployment.
        TryAgainLater: the Prefect server could not be asked whether it does.
    """
    if not isinstance(place, str | Path) or is_absolute(place) or not await belongs_to_a_deployment(run):
        return
    raise ConfigurationError(
        f"A run of a deployment needs a lasting store (VEOGEN_STORE): {str(place)!r} is relative to its working "
        "directory, which may be temporary, and with it the ledger, the caps and the paid files would vanish",
        next_step="Nothing was bought. Set VEOGEN_STORE, or store= (`prefect-veogen deploy --store URL` gives it to "
        "deployments), to an absolute path or s3://bucket/prefix, or to a saved block, s3-bucket/NAME.",
    )


async def belongs_to_a_deployment(run: FlowRun | None = None) -> bool:
    """Return whether a flow run, by default the current one, is a deployment's, or was started by one.

    Raises:
        TryAgainLater: the Prefect server could not be asked.
    """
    if run is not None and run.deployment_id is not None:
        return True
    # Set in whatever a worker or a runner starts for a run: a script which that run starts has a flow run of its own.
    if "PREFECT__FLOW_RUN_ID" in os.environ:
        return True
    try:
        # In a thread: Prefect may request it from its server, and blocks the event loop meanwhile.
        return await asyncio.to_thread(_has_deployment, flow_run.id) if flow_run.id else deployment.id is not None
    except Exception as error:
        raise TryAgainLater(
            f"Can't find out from the Prefect server whether this run has a deployment: {error!r}"
        ) from error


@lru_cache(maxsize=256)
def _has_deployment(flow_run_id: str) -> bool:  # noqa: ARG001 - cache key: a run's deployment never changes
    return deployment.id is not None
