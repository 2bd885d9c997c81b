"""Validate requests: bodies by the catalogue, queries of lists by what is documented; strict, as real rules aren't.

That an unsupported field or value is refused with 422 rather than ignored or clamped is an invention of the sandbox.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from prefect_veogen.sandbox.catalogue import PROMPT_LIMIT, Kind, Model

Problems = dict[str, list[str]]

# INVENTION: plain ASCII, as a URL is once it is percent-encoded.
URL_PATTERN = r"^https?://[A-Za-z0-9_.:\[\]-]+([/?#][!-~]*)?$"
URL_LIMIT = 2048
MAX_PER_PAGE = 100  # documented at /api-reference/generations/list
MAX_PAGE = 1_000_000
NOT_BLANK = r"[^ \t\r\n]"
_URL = re.compile(URL_PATTERN)


@dataclass
class PageQuery:
    """Which page of a list is wanted."""

    per_page: int
    kind: Kind | None = None
    page: int = 1


def read_page_query(parameters: Mapping[str, str], per_page: int) -> tuple[PageQuery, Problems]:
    """Read `type`, `per_page` and `page` of a list; the problems are empty when the query is valid."""
    query, problems = PageQuery(per_page), Problems()
    kind = parameters.get("type")
    if kind in ("image", "video"):
        query.kind = cast("Kind", kind)
    elif kind is not None:
        problems["type"] = ["The selected type is invalid. Allowed: video, image."]
    for name, highest in (("per_page", MAX_PER_PAGE), ("page", MAX_PAGE)):
        text = parameters.get(name)
        if text is None:
            continue
        if text.isascii() and text.isdigit() and len(text) < 10 and 1 <= int(text) <= highest:
            setattr(query, name, int(text))
        else:
            problems[name] = [f"The {name} field must be a whole number between 1 and {highest}."]
    return query, problems


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


def _prompt_problems(body: Mapping[str, Any]) -> Problems:
    prompt = body.get("prompt")
    if "prompt" not in body:
        return {"prompt": ["The prompt field is required."]}
    if not isinstance(prompt, str):
        return {"prompt": ["The prompt field must be a string."]}
    if not _is_text(prompt):
        return {"prompt": ["The prompt field must be valid UTF-8."]}
    if not re.search(NOT_BLANK, prompt):
        return {"prompt": ["The prompt field is required."]}
    if len(prompt) > PROMPT_LIMIT:
        return {"prompt": [f"The prompt field must not be greater than {PROMPT_LIMIT} characters."]}
    return {}


def _option_problems(body: Mapping[str, Any], model: Model) -> Problems:
    problems: Problems = {}
    choices, urls = model.choices(), model.url_limits()
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
            problem = f"The {_printable(name)} field is not supported by {model.slug}. Supported: {accepted}."
        if problem:
            problems[_printable(name)] = [problem]
    return problems


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


def _printable(name: str) -> str:
    return name[:80].encode("ascii", "backslashreplace").decode()
