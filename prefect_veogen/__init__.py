"""Run paid, generative media in a data pipeline: Veogen Studio as safe steps of a Prefect flow."""

from prefect_veogen.blocks import VeogenCredentials
from prefect_veogen.models import Asset, Generation, GenerationRequest
from prefect_veogen.settings import Settings
from prefect_veogen.tasks import download_asset, generate, submit_generation, wait_for_generation

__all__ = [
    "Asset",
    "Generation",
    "GenerationRequest",
    "Settings",
    "VeogenCredentials",
    "download_asset",
    "generate",
    "submit_generation",
    "wait_for_generation",
]
