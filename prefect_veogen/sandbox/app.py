"""The API over HTTP: reads requests, asks the engine, shapes answers; faults bend the answers at the end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Literal, cast

from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import HTMLResponse, JSONResponse, Response

from prefect_veogen.sandbox import contract
from prefect_veogen.sandbox.catalogue import Kind
from prefect_veogen.sandbox.control import control_routes
from prefect_veogen.sandbox.engine import Engine, Generation, InsufficientBalanceError, StatementLine, iso
from prefect_veogen.sandbox.faults import Fault, Subject
from prefect_veogen.sandbox.validation import Problems, problems_with, request_schema
from prefect_veogen.sandbox.wire import DroppedConnection

PREFIX = "/api/v1"
_MOST_PER_PAGE = 100  # documented at /api-reference/generations/list
_HIGHEST_PAGE = 1_000_000

Handler = Callable[[Request], Awaitable[Response]]


def build_app(engine: Engine) -> FastAPI:
    """Make the application that serves the API and, beside it, the control routes."""
    api = Api(engine)
    app = FastAPI(title="Veogen Studio (sandbox)", version="1", docs_url=None, redoc_url=None)
    for path, method, handler, documentation in api.routes():
        app.add_api_route(PREFIX + path, handler, methods=[method], response_model=None, **documentation)
    for route in control_routes(engine):
        app.router.routes.append(route)
    app.add_exception_handler(HTTPException, _plain_error)
    app.openapi = lambda: _described(app)  # type: ignore[method-assign]
    return app


class Api:
    """The handlers of the documented endpoints."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def routes(self) -> list[tuple[str, str, Handler, dict[str, Any]]]:
        """List path, method, handler and OpenAPI description of every endpoint."""
        models = self._engine.models
        older = self._engine.settings.create_shape == "older"
        created = contract.CreateAnswer if older else contract.ShortCreateAnswer
        return [
            (
                "/generations",
                "POST",
                self._guarded(self.create),
                {
                    "summary": "Create Generation",
                    "status_code": 201,
                    "responses": {
                        201: {"model": created},
                        402: {"model": contract.InsufficientBalanceAnswer},
                        422: {"model": contract.InvalidAnswer},
                        **_common_errors(),
                    },
                    "openapi_extra": {
                        "requestBody": {
                            "required": True,
                            "content": {
                                "application/json": {
                                    "schema": {"oneOf": [request_schema(model) for model in models.values()]}
                                }
                            },
                        }
                    },
                },
            ),
            (
                "/generations/{id}",
                "GET",
                self._guarded(self.get),
                {
                    "summary": "Get Generation",
                    "responses": {
                        200: {"model": contract.GenerationAnswer},
                        404: {"model": contract.ErrorAnswer},
                        **_common_errors(),
                    },
                    "openapi_extra": {"parameters": [_path_parameter("id")]},
                },
            ),
            (
                "/generations",
                "GET",
                self._guarded(self.page),
                {
                    "summary": "List Generations",
                    "responses": {
                        200: {"model": contract.GenerationPage | contract.GenerationList},
                        422: {"model": contract.InvalidAnswer},
                        **_common_errors(),
                    },
                    "openapi_extra": {"parameters": [_kind_parameter(), _per_page_parameter(20), _page_parameter()]},
                },
            ),
            (
                "/models",
                "GET",
                self._guarded(self.models),
                {"summary": "List Models", "responses": {200: {"model": contract.ModelList}, **_common_errors()}},
            ),
            (
                "/models/{slug}",
                "GET",
                self._guarded(self.model),
                {
                    "summary": "Get Model",
                    "responses": {
                        200: {"model": contract.ModelAnswer},
                        404: {"model": contract.ErrorAnswer},
                        **_common_errors(),
                    },
                    "openapi_extra": {"parameters": [_path_parameter("slug")]},
                },
            ),
            (
                "/account",
                "GET",
                self._guarded(self.account),
                {"summary": "Get Account", "responses": {200: {"model": contract.AccountAnswer}, **_common_errors()}},
            ),
            (
                "/account/usage",
                "GET",
                self._guarded(self.usage),
                {
                    "summary": "Get Usage",
                    "responses": {
                        200: {"model": contract.UsagePage},
                        422: {"model": contract.InvalidAnswer},
                        **_common_errors(),
                    },
                    "openapi_extra": {
                        "parameters": [_kind_parameter(), _query("model", {"type": "string"}), _per_page_parameter(25)]
                    },
                },
            ),
            (
                "/balance",
                "GET",
                self._guarded(self.balance),
                {"summary": "Get Balance", "responses": {200: {"model": contract.BalanceAnswer}, **_common_errors()}},
            ),
        ]

    def _guarded(self, handler: Handler) -> Handler:
        """Let a request through to the handler only with a token and within the rate limit."""

        async def guarded(request: Request) -> Response:
            scheme, _, token = request.headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not self._engine.knows_token(token.strip()):
                return _unauthenticated()
            wait = self._engine.admit()
            if wait is not None:
                return _too_many(wait)
            try:
                return await handler(request)
            except ClientDisconnect:
                return Response(status_code=400)  # nobody is there to read it

        return guarded

    async def create(self, request: Request) -> Response:
        """Buy a generation."""
        body = _parsed(await request.body())
        problems = problems_with(body, self._engine.models)
        if problems:
            return _invalid(problems)
        wanted = cast("dict[str, Any]", body)
        model = self._engine.models[wanted["model"]]
        price = model.price(wanted)
        try:
            self._engine.check_balance(price)
            fault = self._engine.faults.strike("submit", [Subject("", model.slug, model.kind, wanted["prompt"])])
            refused = _refused_submit(fault, price=float(price), balance=float(self._engine.account()[0]))
            if refused:
                return refused
            generation = self._engine.buy(wanted)
        except InsufficientBalanceError as error:
            return _insufficient(float(error.required), float(error.balance))
        return await _bent_submit(fault, self._created(generation))

    async def get(self, request: Request) -> Response:
        """Show one generation."""
        generation = self._engine.look(request.path_params["id"])
        if generation is None:
            return _not_found("Generation not found.")
        fault = self._engine.faults.strike("look", [generation.subject])
        return await _bent_look(fault, JSONResponse({"data": self._shown([generation])[0]}))

    async def page(self, request: Request) -> Response:
        """Show a page of generations, newest first."""
        query, problems = _page_query(request, per_page=20)
        if problems:
            return _invalid(problems)
        kind, per_page, page = query["type"], query["per_page"], query["page"]
        # Documented: `page` only takes effect together with `type`.
        generations, total = self._engine.page(kind, per_page, page if kind else 1)
        subjects = [generation.subject for generation in generations]
        fault = self._engine.faults.strike("list", subjects)
        if fault is None:
            fault = self._engine.faults.strike("look", subjects, applicable=lambda it: it.name != "look-404")
        hidden = self._engine.strike_shown("hidden-from-list", generations)
        gone = hidden[1] if hidden else frozenset()
        answer: dict[str, Any] = {"data": self._shown([one for one in generations if one.id not in gone])}
        if kind:
            last = max(1, -(-total // per_page))
            answer["meta"] = {"current_page": page, "last_page": last, "per_page": per_page, "total": total}
        return await _bent_look(fault, JSONResponse(answer))

    async def models(self, request: Request) -> Response:
        """Show the catalogue; that it is one list under `data` is an invention."""
        del request
        models = self._engine.models.values()
        fault = self._engine.faults.strike("model", [Subject("", model.slug, model.kind, "") for model in models])
        return _bent_catalogue(fault, JSONResponse({"data": [model.document() for model in models]}))

    async def model(self, request: Request) -> Response:
        """Show one model."""
        model = self._engine.models.get(request.path_params["slug"])
        if model is None:
            return JSONResponse({"error": "Model not found."}, 404)
        fault = self._engine.faults.strike("model", [Subject("", model.slug, model.kind, "")])
        return _bent_catalogue(fault, JSONResponse({"data": model.document()}))

    async def account(self, request: Request) -> Response:
        """Show the balance under a name and an address, both inventions."""
        del request
        balance, spent = self._engine.account()
        person = {"name": "Sandbox", "email": "sandbox@example.com"}
        return self._unless_broken({"data": {**person, "usd_balance": float(balance), "usd_spent": float(spent)}})

    async def usage(self, request: Request) -> Response:
        """Show a page of the statement, newest first (the order and `page` are inventions)."""
        query, problems = _page_query(request, per_page=25)
        if problems:
            return _invalid(problems)
        per_page, page = query["per_page"], query["page"]
        lines = self._engine.statement(request.query_params.get("model"), query["type"])
        shown = [_usage_line(line) for line in lines[(page - 1) * per_page : page * per_page]]
        return self._unless_broken({"current_page": page, "data": shown, "per_page": per_page, "total": len(lines)})

    async def balance(self, request: Request) -> Response:
        """Show the balance alone."""
        del request
        balance, spent = self._engine.account()
        return self._unless_broken({"remaining_balance": float(balance), "used_balance": float(spent)})

    def _unless_broken(self, answer: Mapping[str, Any]) -> Response:
        return _server_error() if self._engine.faults.strike("account") else JSONResponse(answer)

    def _created(self, generation: Generation) -> Response:
        document = self._engine.document(generation)
        if self._engine.settings.create_shape == "older":
            return JSONResponse({"data": document, "price_usd": float(generation.price_usd)}, 201)
        short = {name: document[name] for name in ("id", "model", "status", "created_at")}
        short["created_at"] = short["created_at"].replace("+00:00", "Z")
        return JSONResponse({"data": short}, 201)

    def _shown(self, generations: Sequence[Generation]) -> list[dict[str, Any]]:
        """Shape generations for a look, with the faults that change how they are shown."""
        documents = {generation.id: self._engine.document(generation) for generation in generations}
        done = [generation for generation in generations if documents[generation.id]["status"] == "completed"]
        for name, concerned in (("completed-without-output", done), ("unknown-status", list(generations))):
            struck = self._engine.strike_shown(name, concerned)
            if struck is None:
                continue
            status = struck[0].parameters.get("status")
            change = {"output": None} if name == "completed-without-output" else {"status": status}
            for generation_id in struck[1]:
                documents[generation_id].update(change)
        return list(documents.values())


def _parsed(body: bytes) -> object:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _page_query(request: Request, per_page: int) -> tuple[dict[str, Any], Problems]:
    """Read `type`, `per_page` and `page`; refusing instead of clamping is an invention."""
    query: dict[str, Any] = {"type": None, "per_page": per_page, "page": 1}
    problems: Problems = {}
    kind = request.query_params.get("type")
    if kind in ("image", "video"):
        query["type"] = cast("Kind", kind)
    elif kind is not None:
        problems["type"] = ["The selected type is invalid. Allowed: video, image."]
    for name, most in (("per_page", _MOST_PER_PAGE), ("page", _HIGHEST_PAGE)):
        text = request.query_params.get(name)
        if text is None:
            continue
        if text.isascii() and text.isdigit() and len(text) < 10 and 1 <= int(text) <= most:
            query[name] = int(text)
        else:
            problems[name] = [f"The {name} field must be a whole number between 1 and {most}."]
    return query, problems


def _usage_line(line: StatementLine) -> dict[str, Any]:
    return {
        "id": line.number,
        "model_key": line.model.usage_key,
        "generation_type": line.model.kind,
        "amount_usd": float(line.amount_usd),
        "source": "api",
        "created_at": iso(line.at).replace("+00:00", ".000000Z"),
    }


# --- faults


def _refused_submit(fault: Fault | None, *, price: float, balance: float) -> Response | None:
    """Answer instead of buying, where the fault says so."""
    if fault is None:
        return None
    refusals: dict[str, Callable[[], Response]] = {
        "lost-answer-before-charge": DroppedConnection,
        "500-before-charge": _server_error,
        "503-before-charge": lambda: _gateway_page(503, "Service Unavailable"),
        "429": lambda: _too_many(fault.parameters["retry_after"]),
        "402": lambda: _insufficient(price, min(balance, price / 2)),
        "401": _unauthenticated,
        "422": lambda: _invalid({fault.parameters["field"]: [fault.parameters["message"]]}),
    }
    refuse = refusals.get(fault.name)
    return refuse() if refuse else None


async def _bent_submit(fault: Fault | None, answer: Response) -> Response:
    """Spoil the answer to a purchase that was made."""
    if fault is None:
        return answer
    if fault.name == "slow-answer":
        await asyncio.sleep(fault.parameters["seconds"])
        return answer
    spoilt: dict[str, Callable[[], Response]] = {
        "lost-answer-after-charge": DroppedConnection,
        "500-after-charge": _server_error,
        "502-after-charge": lambda: _gateway_page(502, "Bad Gateway"),
        "garbled-json-after-charge": lambda: _garbled(answer),
        "empty-body-after-charge": lambda: Response(b"", 201, media_type="application/json"),
        "html-after-charge": lambda: _gateway_page(201, "Please wait"),
    }
    return spoilt[fault.name]()


async def _bent_look(fault: Fault | None, answer: Response) -> Response:
    if fault is None:
        return answer
    if fault.name == "look-slow":
        await asyncio.sleep(fault.parameters["seconds"])
        return answer
    spoilt: dict[str, Callable[[], Response]] = {
        "look-500": _server_error,
        "list-500": _server_error,
        "look-dropped": DroppedConnection,
        "look-garbled": lambda: _garbled(answer),
        "look-html": lambda: _gateway_page(200, "Please wait"),
        "look-429": lambda: _too_many(fault.parameters["retry_after"]),
        "look-401": _unauthenticated,
        "look-404": lambda: _not_found("Generation not found."),
    }
    return spoilt[fault.name]()


def _bent_catalogue(fault: Fault | None, answer: Response) -> Response:
    if fault is None:
        return answer
    spoilt: dict[str, Callable[[], Response]] = {
        "model-500": _server_error,
        "model-html": lambda: _gateway_page(200, "Please wait"),
        "model-dropped": DroppedConnection,
    }
    return spoilt[fault.name]()


def _garbled(answer: Response) -> Response:
    return Response(bytes(answer.body)[: len(answer.body) // 2], answer.status_code, media_type="application/json")


def _gateway_page(status: int, text: str) -> Response:
    return HTMLResponse(f"<!doctype html><title>{text}</title><h1>{status} {text}</h1>", status)


# --- errors


def _unauthenticated() -> Response:
    return JSONResponse({"error": "Unauthenticated.", "message": "The API token is missing or invalid."}, 401)


def _insufficient(required: float, balance: float) -> Response:
    """Shape the refusal as documented at /authentication."""
    message = f"This generation costs ${required:.2f} but your balance is ${balance:.2f}."
    error = "Insufficient balance."
    return JSONResponse({"error": error, "message": message, "required": required, "balance": balance}, 402)


def _invalid(problems: Problems) -> Response:
    every = [problem for of_field in problems.values() for problem in of_field]
    more = f" (and {len(every) - 1} more)" if len(every) > 1 else ""
    return JSONResponse({"message": every[0] + more, "errors": problems}, 422)


def _too_many(seconds: int) -> Response:
    body = {"error": "Too many requests.", "message": f"Retry after {seconds} seconds."}
    return JSONResponse(body, 429, headers={"Retry-After": str(seconds)})


def _not_found(error: str) -> Response:
    return JSONResponse({"error": error}, 404)


def _server_error() -> Response:
    return JSONResponse({"error": "Server error.", "message": "Something went wrong."}, 500)


async def _plain_error(request: Request, error: Exception) -> Response:
    del request
    refusal = cast("HTTPException", error)
    return JSONResponse({"error": str(refusal.detail)}, refusal.status_code, headers=dict(refusal.headers or {}))


# --- the OpenAPI document


def _described(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, routes=app.routes)
        components = document.setdefault("components", {})
        components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"token": []}]
        app.openapi_schema = document
    return app.openapi_schema


def _common_errors() -> dict[int | str, dict[str, Any]]:
    retry_after = {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds to wait."}}
    return {
        401: {"model": contract.ErrorAnswer},
        429: {"model": contract.ErrorAnswer, "headers": retry_after},
        500: {"model": contract.ErrorAnswer},
    }


def _query(name: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "schema": dict(schema)}


def _path_parameter(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}


def _kind_parameter() -> dict[str, Any]:
    kinds: list[Literal["video", "image"]] = ["video", "image"]
    return _query("type", {"type": "string", "enum": kinds})


def _per_page_parameter(default: int) -> dict[str, Any]:
    return _query("per_page", {"type": "integer", "minimum": 1, "maximum": _MOST_PER_PAGE, "default": default})


def _page_parameter() -> dict[str, Any]:
    return _query("page", {"type": "integer", "minimum": 1, "maximum": _HIGHEST_PAGE, "default": 1})
