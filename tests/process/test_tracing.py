"""Traces: what a program that sends them somewhere gets to see."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from prefect_veogen.download.deliver import deliver
from prefect_veogen.errors import GenerationFailed
from prefect_veogen.models import Delivery, GenerationRequest
from prefect_veogen.process.io_loop import on_io
from prefect_veogen.purchase.submit import buy
from prefect_veogen.purchase.wait import wait
from prefect_veogen.sandbox import Sandbox
from prefect_veogen.session import Session, open_session

SECRET_PLAN = "a cat that nobody must know of"
CAT = GenerationRequest(model="gpt-4o-image", prompt=SECRET_PLAN)


@pytest.fixture(scope="module")
def exporter() -> InMemorySpanExporter:
    """Where the spans of this process go: OpenTelemetry lets that be set once."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return exporter


@pytest.fixture
def spans(exporter: InMemorySpanExporter, sandbox: Sandbox) -> Iterator[InMemorySpanExporter]:
    exporter.clear()
    yield exporter
    exporter.clear()


async def made(session: Session, request: GenerationRequest) -> Delivery:
    purchase = await buy(session, request)
    return await deliver(session, await wait(session, purchase.generation, 30))


def facts(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


async def test_a_purchase_a_wait_and_a_download_are_spans_of_the_callers_trace_with_model_price_and_ids(
    spans: InMemorySpanExporter,
) -> None:
    with trace.get_tracer("caller").start_as_current_span("pipeline") as pipeline:
        delivery = await on_io(made(open_session(), CAT))
    *steps, _ = spans.get_finished_spans()
    assert [span.name for span in steps] == ["veogen.purchase", "veogen.wait", "veogen.download"]
    assert {span.context.trace_id for span in steps if span.context} == {pipeline.get_span_context().trace_id}
    assert {facts(span)["gen_ai.request.model"] for span in steps} == {"gpt-4o-image"}
    assert {facts(span)["veogen.generation_id"] for span in steps} == {delivery.asset.generation_id}
    assert {facts(span)["veogen.receipt"] for span in steps} == {delivery.receipt}
    assert {facts(span)["veogen.price_usd"] for span in steps} == {0.02}
    assert [facts(span).get("veogen.reused") for span in steps] == [False, None, False]


async def test_what_was_bought_before_is_traced_as_reused_and_waits_for_nothing(spans: InMemorySpanExporter) -> None:
    await on_io(made(open_session(), CAT))
    spans.clear()
    await on_io(made(open_session(), CAT))
    found = [(span.name, facts(span)["veogen.reused"]) for span in spans.get_finished_spans()]
    assert found == [("veogen.purchase", True), ("veogen.download", True)]


async def test_no_span_bears_the_prompt_unless_that_is_asked_for(
    spans: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    await on_io(made(open_session(), CAT))
    assert not [span for span in spans.get_finished_spans() if SECRET_PLAN in span.to_json()]
    monkeypatch.setenv("VEOGEN_TRACE_PROMPTS", "true")
    await on_io(made(open_session(), CAT))
    assert [facts(span)["gen_ai.prompt"] for span in spans.get_finished_spans() if SECRET_PLAN in span.to_json()] == [
        SECRET_PLAN
    ]


async def test_an_error_is_traced_by_its_type_and_neither_text_nor_token(
    spans: InMemorySpanExporter, sandbox: Sandbox
) -> None:
    sandbox.fault("failed", reason=f"no {SECRET_PLAN}, please")
    with pytest.raises(GenerationFailed):
        await on_io(made(open_session(), CAT))
    wait_span = next(span for span in spans.get_finished_spans() if span.name == "veogen.wait")
    assert facts(wait_span)["veogen.status"] == "failed"
    texts = [span.to_json() for span in spans.get_finished_spans()]
    assert not [text for text in texts if SECRET_PLAN in text or sandbox.token in text]
