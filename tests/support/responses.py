"""Responses of the API as documented, for tests of their readers."""

from __future__ import annotations

import json
from typing import Any

from prefect_veogen.api.fields import Response

HTML = b"<!doctype html><html><head><title>502 Bad\nGateway</title></head><body>nginx</body></html>"
OLDER = {
    "data": {
        "id": "01928abc-0000-4000-8000-000000000000",
        "status": "pending",
        "model": "veo-3.1-fast",
        "type": "video",
        "prompt": "waves",
        "parameters": {"aspect_ratio": "16:9"},
        "output": None,
        "error": None,
        "created_at": "2025-01-15T10:30:00+00:00",
        "completed_at": None,
    },
    "price_usd": 0.3,
}


def response(body: Any, status: int = 200, **headers: str) -> Response:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Response(status, {name.replace("_", "-"): value for name, value in headers.items()}, raw)


DOCUMENTED_MODEL = {
    "slug": "veo-3.1-fast",
    "label": "Veo 3.1 Fast",
    "type": "video",
    "price_usd": 0.30,
    "multiply_by_duration": False,
    "resolution_multipliers": {"720p": 1, "1080p": 1, "4k": 3},
    "supported_params": ["prompt", "duration", "aspect_ratio", "resolution", "image_urls", "mode"],
    "aspect_ratios": ["16:9", "9:16"],
    "resolutions": ["720p", "1080p", "4k"],
    "durations": [8],
    "modes": ["frame", "ingredient"],
    "docs_url": "https://veogen.studio/api-reference/models/veo-3.1-fast",
}
