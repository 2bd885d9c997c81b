"""Run paid, generative media in a data pipeline: Veogen Studio as safe steps of a Prefect flow.

The names below are imported when they are first used: the console command, the sandbox and pytest's plugin do without
Prefect, whose import takes seconds.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prefect_veogen.blocks import VeogenCredentials
    from prefect_veogen.campaign.items import CampaignItem
    from prefect_veogen.campaign.report import CampaignReport
    from prefect_veogen.campaign.storyboard import Storyboard
    from prefect_veogen.jobs import GenerationRun, VeogenGeneration
    from prefect_veogen.models import Animated, Approved, Asset, Generation, GenerationRequest
    from prefect_veogen.settings import Settings
    from prefect_veogen.tasks.generation import download_asset, generate, submit_generation, wait_for_generation
    from prefect_veogen.upkeep.sweep import Swept
else:
    from importlib import import_module as _import_module

    _HOMES = {
        "Animated": "models",
        "Approved": "models",
        "Asset": "models",
        "CampaignItem": "campaign.items",
        "CampaignReport": "campaign.report",
        "Generation": "models",
        "GenerationRequest": "models",
        "GenerationRun": "jobs",
        "Settings": "settings",
        "Storyboard": "campaign.storyboard",
        "Swept": "upkeep.sweep",
        "VeogenCredentials": "blocks",
        "VeogenGeneration": "jobs",
        "download_asset": "tasks.generation",
        "generate": "tasks.generation",
        "submit_generation": "tasks.generation",
        "wait_for_generation": "tasks.generation",
    }

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = getattr(_import_module(f"{__name__}.{_HOMES[name]}"), name)
        globals()[name] = found
        return found

    def __dir__() -> list[str]:
        return sorted({*globals(), *_HOMES})


__all__ = [
    "Animated",
    "Approved",
    "Asset",
    "CampaignItem",
    "CampaignReport",
    "Generation",
    "GenerationRequest",
    "GenerationRun",
    "Settings",
    "Storyboard",
    "Swept",
    "VeogenCredentials",
    "VeogenGeneration",
    "download_asset",
    "generate",
    "submit_generation",
    "wait_for_generation",
]
