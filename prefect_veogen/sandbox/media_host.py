"""The media host: a second origin which serves finished files, with ranges and with faults."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from prefect_veogen.sandbox.connections import BrokenBody, FileBody, RawResponse, ResetBody, StalledBody
from prefect_veogen.sandbox.engine import Engine
from prefect_veogen.sandbox.faults import Fault
from prefect_veogen.sandbox.generations import MediaPath
from prefect_veogen.sandbox.media import MediaFile

_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")
_MOVED, _LOOP = "/storage/moved/", "/storage/loop/"
_STATUS_PAGES = {"media-404": 404, "media-410": 410, "media-500": 500, "media-503": 503, "media-expired": 403}


@dataclass(frozen=True)
class Slice:
    """The part of a file a request asks for."""

    start: int
    stop: int
    partial: bool


class MediaHost:
    """An ASGI application that serves `/storage/...`; no token is needed."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        response = await self._respond(request)
        await response(scope, receive, send)

    async def _respond(self, request: Request) -> Response:
        if request.method not in ("GET", "HEAD"):
            return Response(status_code=405, headers={"Allow": "GET, HEAD"})
        path = request.url.path
        if path.startswith(_LOOP):
            return _redirect(path)
        moved = path.startswith(_MOVED)
        media = self._engine.outputs.find(path.replace(_MOVED, "/storage/", 1) if moved else path)
        if media is None:
            return _page(404, "Not Found")
        if media.expired:
            return _page(403, "Request has expired")
        fault = self._strike(request, media, moved=moved)
        media.requests += 1
        if fault:
            return await self._respond_faulty(fault, request, media)
        return self._serve(request, media, await self._draw(media))

    def _strike(self, request: Request, media: MediaPath, *, moved: bool) -> Fault | None:
        generation = media.generation
        ranged = "range" in request.headers

        def applicable(fault: Fault) -> bool:
            if moved or (request.method == "HEAD" and fault.name not in _STATUS_PAGES):
                return False
            if fault.name == "media-no-range":
                return ranged
            if fault.name == "media-changed":
                return media.requests > 0
            if fault.name == "media-huge":
                return generation is not None and generation.model.kind == "video"
            return True

        return self._engine.faults.strike("media", [generation.subject] if generation else [], applicable=applicable)

    async def _respond_faulty(self, fault: Fault, request: Request, media: MediaPath) -> Response:
        if fault.name in _STATUS_PAGES:
            return self._status_page(fault, media)
        if fault.name.startswith("media-redirect"):
            return _redirect(_redirect_target(fault, media))
        if fault.name == "media-changed":
            media.variant += 1
        if fault.name == "media-huge":
            media.size_bytes = fault.parameters["size_bytes"]
        file = await self._draw(media)
        if fault.name in ("media-changed", "media-huge"):
            return self._serve(request, media, file)
        if fault.name == "media-no-range":
            return self._serve_slice(request, media, file, Slice(0, file.size, partial=False))
        return await self._replace(fault, media, file) or self._break_off(fault, request, media, file)

    def _status_page(self, fault: Fault, media: MediaPath) -> Response:
        media.expired = media.expired or fault.name == "media-expired"
        page = _page(_STATUS_PAGES[fault.name], fault.kind.summary)
        if "retry_after" in fault.parameters:
            page.headers["Retry-After"] = str(fault.parameters["retry_after"])
        return page

    async def _replace(self, fault: Fault, media: MediaPath, file: MediaFile) -> Response | None:
        """Respond 200 with something else in place of the file; None unless the fault says so."""
        html = "<!doctype html><title>Sign in</title><h1>Please sign in to continue</h1>"
        if fault.name == "media-html":
            return Response(html, media_type="text/html")
        if fault.name == "media-html-as-media":
            return Response(html, media_type=file.content_type)
        if fault.name == "media-json":
            return JSONResponse({"error": "File is not available."})
        if fault.name == "media-empty":
            return Response(b"", media_type=file.content_type)
        if fault.name == "media-wrong-type":
            other = await asyncio.to_thread(self._engine.outputs.draw_other_kind, media)
            return Response(b"".join(other.read(0, other.size)), media_type=file.content_type)
        return None

    def _break_off(self, fault: Fault, request: Request, media: MediaPath, file: MediaFile) -> Response:
        part = _parse_range(request, file, self._modified(media))
        if part is None:
            return _unsatisfiable(file)
        status, headers = 206 if part.partial else 200, self._headers(request, media, file, part)
        length = part.stop - part.start
        sent = file.read(part.start, part.start + int(length * fault.parameters.get("share", 1)))
        if fault.name == "media-truncated":
            return BrokenBody(status, headers, sent)
        if fault.name == "media-reset":
            return ResetBody(status, headers, sent)
        if fault.name == "media-stalled":
            return StalledBody(status, headers, sent, fault.parameters["seconds"])
        if fault.name == "media-slow":
            step = max(1, fault.parameters["bytes_per_second"] // 10)
            pieces = _split(file.read(part.start, part.stop), step)
            return FileBody(status, headers, pieces, pause_seconds=step / fault.parameters["bytes_per_second"])
        if fault.name == "media-truncated-silently":
            headers["Content-Length"] = str(int(length * fault.parameters["share"]))
            return FileBody(status, headers, sent)
        if fault.name == "media-wrong-length":
            headers["Content-Length"] = str(max(0, length + fault.parameters["extra"]))
            return RawResponse(status, headers, file.read(part.start, part.stop))
        raise LookupError(f"the media host has no behaviour for {fault.name}")

    def _serve(self, request: Request, media: MediaPath, file: MediaFile) -> Response:
        modified = self._modified(media)
        if file.etag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers={"ETag": file.etag, "Last-Modified": modified})
        part = _parse_range(request, file, modified)
        return self._serve_slice(request, media, file, part) if part else _unsatisfiable(file)

    def _serve_slice(self, request: Request, media: MediaPath, file: MediaFile, part: Slice) -> Response:
        status, headers = 206 if part.partial else 200, self._headers(request, media, file, part)
        if request.method == "HEAD":
            return Response(status_code=status, headers=headers)
        return FileBody(status, headers, file.read(part.start, part.stop))

    def _headers(self, request: Request, media: MediaPath, file: MediaFile, part: Slice) -> dict[str, str]:
        headers = {
            "Content-Type": file.content_type,
            "Content-Length": str(part.stop - part.start),
            "ETag": file.etag,
            "Last-Modified": self._modified(media),
            "Accept-Ranges": "bytes",
        }
        if part.partial:
            headers["Content-Range"] = f"bytes {part.start}-{part.stop - 1}/{file.size}"
        if request.query_params.get("download"):
            headers["Content-Disposition"] = f'attachment; filename="{media.path.rsplit("/", 1)[1]}"'
        return headers

    def _modified(self, media: MediaPath) -> str:
        moment = media.generation.completed_at if media.generation else datetime.now(UTC)
        return format_datetime((moment + timedelta(seconds=media.variant)).astimezone(UTC), usegmt=True)

    async def _draw(self, media: MediaPath) -> MediaFile:
        return await asyncio.to_thread(self._engine.outputs.draw, media)


def _parse_range(request: Request, file: MediaFile, modified: str) -> Slice | None:
    """Parse the Range header; None if it can't be satisfied. Several ranges in one header get the whole file."""
    whole = Slice(0, file.size, partial=False)
    matched = _RANGE.fullmatch(request.headers.get("range", "").strip())
    if not matched or request.headers.get("if-range", file.etag) not in (file.etag, modified):
        return whole
    first, last = matched.groups()
    if not first and not last:
        return whole
    if not first:
        start, stop = max(0, file.size - int(last)), file.size
    else:
        start, stop = int(first), min(file.size, int(last) + 1) if last else file.size
    if first and last and int(last) < int(first):
        return whole
    return Slice(start, stop, partial=True) if start < stop else None


def _unsatisfiable(file: MediaFile) -> Response:
    return Response(status_code=416, headers={"Content-Range": f"bytes */{file.size}", "ETag": file.etag})


def _redirect(location: str) -> Response:
    return Response(status_code=302, headers={"Location": location})


def _redirect_target(fault: Fault, media: MediaPath) -> str:
    if fault.name == "media-redirect-private":
        return str(fault.parameters["location"])
    prefix = _LOOP if fault.name == "media-redirect-loop" else _MOVED
    return media.path.replace("/storage/", prefix, 1)


def _page(status: int, text: str) -> Response:
    return Response(f"<!doctype html><title>{status}</title><h1>{text}</h1>", status, media_type="text/html")


def _split(pieces: Iterator[bytes], step: int) -> Iterator[bytes]:
    for piece in pieces:
        for offset in range(0, len(piece), step):
            yield piece[offset : offset + step]
