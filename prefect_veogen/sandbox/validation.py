"""What is wrong with a request, decided by the catalogue; strict, because the real rules are not documented.

That an unsupported field or value is refused with 422 rather than ignored is an invention of the sandbox.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from prefect_veogen.sandbox.catalogue import PROMPT_LIMIT, Model

Problems = dict[str, list[str]]

# INVENTION: plain ASCII, as a URL is once it is percent-encoded.
URL_PATTERN = r"^https?://[A-Za-z0-9_.:\[\]-]+([/?#][!-~]*)?$"
URL_LIMIT = 2048
_NOT_BLANK = r"[^ \t\r\n]"
_URL = re.compile(URL_PATTERN)


def problems_with(body: object, models: Mapping[str, Model]) -> Problems:
    """List what is wrong with the body of POST /generations, by field; empty when it would be accepted."""
    if not isinstance(body, dict):
        return {"body": ["The body must be a JSON object."]}
    slug = body.get("model")
    if "model" not in body:
        return {"model": ["The model field is required."], **_prompt_problems(body)}
    if not isinstance(slug, str) or slug not in models:
        return {"model": [f"The selected model is invalid. Known: {', '.join(models)}."], **_prompt_problems(body)}
    model = models[slug]
    return {**_prompt_problems(body), **_option_problems(body, model)}


def request_schema(model: Model) -> dict[str, Any]:
    """Describe the requests this model accepts as a JSON schema."""
    properties: dict[str, Any] = {
        "model": {"type": "string", "const": model.slug},
        "prompt": {"type": "string", "minLength": 1, "maxLength": PROMPT_LIMIT, "pattern": _NOT_BLANK},
    }
    for name, choices in _choices(model).items():
        properties[name] = {"type": "integer" if name == "duration" else "string", "enum": list(choices)}
    for name, limit in _url_limits(model).items():
        url = {"type": "string", "pattern": URL_PATTERN, "maxLength": URL_LIMIT}
        properties[name] = {"type": "array", "items": url, "maxItems": limit}
    for name in model.flags:
        properties[name] = {"type": "boolean"}
    return {
        "title": model.label,
        "type": "object",
        "properties": properties,
        "required": ["model", "prompt"],
        "additionalProperties": False,
    }


def _prompt_problems(body: Mapping[str, Any]) -> Problems:
    prompt = body.get("prompt")
    if "prompt" not in body:
        return {"prompt": ["The prompt field is required."]}
    if not isinstance(prompt, str):
        return {"prompt": ["The prompt field must be a string."]}
    if not _is_text(prompt):
        return {"prompt": ["The prompt field must be valid UTF-8."]}
    if not re.search(_NOT_BLANK, prompt):
        return {"prompt": ["The prompt field is required."]}
    if len(prompt) > PROMPT_LIMIT:
        return {"prompt": [f"The prompt field must not be greater than {PROMPT_LIMIT} characters."]}
    return {}


def _option_problems(body: Mapping[str, Any], model: Model) -> Problems:
    problems: Problems = {}
    choices, urls = _choices(model), _url_limits(model)
    for name, value in body.items():
        if name in ("model", "prompt"):
            continue
        if name in choices:
            problem = _choice_problem(name, value, choices[name])
        elif name in urls:
            problem = _url_problem(name, value, urls[name])
        elif name in model.flags:
            problem = None if isinstance(value, bool) else f"The {name} field must be true or false."
        else:
            accepted = ", ".join(model.supported_params())
            problem = f"The {_shown(name)} field is not supported by {model.slug}. Supported: {accepted}."
        if problem:
            problems[_shown(name)] = [problem]
    return problems


def _choices(model: Model) -> dict[str, tuple[str | int, ...]]:
    every: dict[str, tuple[str | int, ...]] = {
        "aspect_ratio": model.aspect_ratios,
        "resolution": model.resolutions,
        "duration": model.durations,
        "mode": model.modes,
        "style": model.styles,
    }
    return {name: values for name, values in every.items() if values}


def _url_limits(model: Model) -> dict[str, int]:
    every = {"image_urls": model.max_images, "video_urls": model.max_videos, "audio_urls": model.max_audios}
    return {name: limit for name, limit in every.items() if limit}


def _choice_problem(name: str, value: object, choices: tuple[str | int, ...]) -> str | None:
    # True equals 1 and 8.0 equals 8 in Python, so the type is compared too.
    if any(type(value) is type(choice) and value == choice for choice in choices):
        return None
    return f"The selected {name} is invalid. Allowed: {', '.join(map(str, choices))}."


def _url_problem(name: str, value: object, limit: int) -> str | None:
    if not isinstance(value, list):
        return f"The {name} field must be an array."
    if len(value) > limit:
        return f"The {name} field must not have more than {limit} items."
    if all(isinstance(url, str) and len(url) <= URL_LIMIT and _URL.fullmatch(url) for url in value):
        return None
    return f"The {name} field must contain only http or https URLs of at most {URL_LIMIT} characters."


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shown(name: str) -> str:
    return name[:80].encode("ascii", "backslashreplace").decode()
