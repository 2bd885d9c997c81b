"""The API over HTTP: its routes, which read requests, ask the engine and shape responses."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, cast

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from prefect_veogen.sandbox.bend import bend_catalogue, bend_poll, bend_purchase, refuse_purchase
from prefect_veogen.sandbox.books import InsufficientBalanceError, StatementLine
from prefect_veogen.sandbox.control import control_routes
from prefect_veogen.sandbox.engine import Engine
from prefect_veogen.sandbox.faults import Subject
from prefect_veogen.sandbox.generations import Generation, format_date
from prefect_veogen.sandbox.responses import (
    generation_not_found,
    insufficient_balance,
    invalid,
    model_not_found,
    routing_error,
    server_error,
    too_many_requests,
    unauthenticated,
)
from prefect_veogen.sandbox.validation import problems_with, read_page_query

PREFIX = "/api/v1"

Handler = Callable[[Request], Awaitable[Response]]


def build_app(engine: Engine) -> Starlette:
    """Make the application that serves the API and, beside it, the control routes."""
    routes = [*Api(engine).routes(), *control_routes(engine)]
    return Starlette(routes=routes, exception_handlers={HTTPException: routing_error})


class Api:
    """The handlers of the documented endpoints."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def routes(self) -> list[Route]:
        """Make the routes of all documented endpoints."""
        endpoints: tuple[tuple[str, str, Handler], ...] = (
            ("POST", "/generations", self.create),
            ("GET", "/generations/{id}", self.get),
            ("GET", "/generations", self.page),
            ("GET", "/models", self.models),
            ("GET", "/models/{slug}", self.model),
            ("GET", "/account", self.account),
            ("GET", "/account/usage", self.usage),
            ("GET", "/balance", self.balance),
        )
        routes = [Route(PREFIX + path, self._guard(handler)) for _, path, handler in endpoints]
        for route, (method, _, _) in zip(routes, endpoints, strict=True):
            route.methods = {method}  # Starlette would add HEAD, which the API doesn't document
        return routes

    def _guard(self, handler: Handler) -> Handler:
        """Let a request through to the handler only with a token and within the rate limit."""

        async def admit(request: Request) -> Response:
            scheme, _, token = request.headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not self._engine.accepts_token(token.strip()):
                return unauthenticated()
            wait = self._engine.rate_limit.admit()
            if wait is not None:
                return too_many_requests(wait)
            try:
                return await handler(request)
            except ClientDisconnect:
                return Response(status_code=400)  # the client is gone and won't read it

        return admit

    async def create(self, request: Request) -> Response:
        """Buy a generation."""
        body = _parse(await request.body())
        problems = problems_with(body, self._engine.models)
        if problems:
            return invalid(problems)
        wanted = cast("dict[str, Any]", body)
        model = self._engine.models[wanted["model"]]
        price = model.price(wanted)
        try:
            self._engine.check_balance(price)
            fault = self._engine.faults.strike("submit", [Subject("", model.slug, model.kind, wanted["prompt"])])
            refusal = refuse_purchase(fault, price=float(price), balance=float(self._engine.account()[0]))
            if refusal:
                return refusal
            generation = self._engine.buy(wanted)
        except InsufficientBalanceError as error:
            return insufficient_balance(float(error.required), float(error.balance))
        return await bend_purchase(fault, self._show_new(generation))

    async def get(self, request: Request) -> Response:
        """Show one generation."""
        generation = self._engine.poll(request.path_params["id"])
        if generation is None:
            return generation_not_found()
        fault = self._engine.faults.strike("look", [generation.subject])
        return await bend_poll(fault, JSONResponse({"data": self._show([generation])[0]}))

    async def page(self, request: Request) -> Response:
        """Show a page of generations, newest first."""
        query, problems = read_page_query(request.query_params, per_page=20)
        if problems:
            return invalid(problems)
        # Documented: `page` only takes effect together with `type`.
        generations, total = self._engine.page(query.kind, query.per_page, query.page if query.kind else 1)
        subjects = [generation.subject for generation in generations]
        fault = self._engine.faults.strike("list", subjects)
        if fault is None:
            fault = self._engine.faults.strike("look", subjects, applicable=lambda it: it.name != "look-404")
        hidden = self._engine.strike_shown("hidden-from-list", generations)
        hidden_ids = hidden[1] if hidden else frozenset()
        shown: dict[str, Any] = {"data": self._show([one for one in generations if one.id not in hidden_ids])}
        if query.kind:
            last = max(1, -(-total // query.per_page))
            counts = {"current_page": query.page, "last_page": last, "per_page": query.per_page, "total": total}
            shown["meta"] = counts
        return await bend_poll(fault, JSONResponse(shown))

    async def models(self, request: Request) -> Response:
        """Show the catalogue; that it is one list under `data` is an invention."""
        del request
        models = self._engine.models.values()
        fault = self._engine.faults.strike("model", [Subject("", model.slug, model.kind, "") for model in models])
        return bend_catalogue(fault, JSONResponse({"data": [model.document() for model in models]}))

    async def model(self, request: Request) -> Response:
        """Show one model."""
        model = self._engine.models.get(request.path_params["slug"])
        if model is None:
            return model_not_found()
        fault = self._engine.faults.strike("model", [Subject("", model.slug, model.kind, "")])
        return bend_catalogue(fault, JSONResponse({"data": model.document()}))

    async def account(self, request: Request) -> Response:
        """Show the balance under a name and an address, both inventions."""
        del request
        balance, spent = self._engine.account()
        person = {"name": "Sandbox", "email": "sandbox@example.com"}
        return self._show_account({"data": {**person, "usd_balance": float(balance), "usd_spent": float(spent)}})

    async def usage(self, request: Request) -> Response:
        """Show a page of the statement, newest first (the order and `page` are inventions)."""
        query, problems = read_page_query(request.query_params, per_page=25)
        if problems:
            return invalid(problems)
        per_page, page = query.per_page, query.page
        lines = self._engine.statement(request.query_params.get("model"), query.kind)
        shown = [_show_line(line) for line in lines[(page - 1) * per_page : page * per_page]]
        return self._show_account({"current_page": page, "data": shown, "per_page": per_page, "total": len(lines)})

    async def balance(self, request: Request) -> Response:
        """Show the balance alone."""
        del request
        balance, spent = self._engine.account()
        return self._show_account({"remaining_balance": float(balance), "used_balance": float(spent)})

    def _show_account(self, content: Mapping[str, Any]) -> Response:
        return server_error() if self._engine.faults.strike("account") else JSONResponse(content)

    def _show_new(self, generation: Generation) -> Response:
        document = self._engine.document(generation)
        if self._engine.settings.create_shape == "older":
            return JSONResponse({"data": document, "price_usd": float(generation.price_usd)}, 201)
        short = {name: document[name] for name in ("id", "model", "status", "created_at")}
        short["created_at"] = short["created_at"].replace("+00:00", "Z")
        return JSONResponse({"data": short}, 201)

    def _show(self, generations: Sequence[Generation]) -> list[dict[str, Any]]:
        """Shape generations for a poll, with the faults that change how they are shown."""
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


def _parse(body: bytes) -> object:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _show_line(line: StatementLine) -> dict[str, Any]:
    return {
        "id": line.number,
        "model_key": line.model.usage_key,
        "generation_type": line.model.kind,
        "amount_usd": float(line.amount_usd),
        "source": "api",
        "created_at": format_date(line.at).replace("+00:00", ".000000Z"),
    }
