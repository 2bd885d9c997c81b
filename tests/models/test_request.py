"""Requests are frozen values whose key says what is bought, and a wrong one says all that is wrong with it."""

from __future__ import annotations

import pickle
import threading
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prefect import Flow
from prefect.exceptions import ParameterTypeError
from pydantic import BaseModel, ValidationError

from prefect_veogen import Asset, Generation, GenerationRequest
from prefect_veogen.errors import InvalidRequest, Problem
from prefect_veogen.models import MAX_PROMPT_CHARACTERS, ReceiptKey, normal_base_url

BASE_URL = "https://veogen.studio/api/v1"
PICTURE = Asset(
    uri="s3://bucket/assets/one.png",
    sha256="ab" * 32,
    size=1,
    content_type="image/png",
    generation_id="one",
    price_usd=Decimal("0.02"),
)
EVERYTHING: dict[str, Any] = {
    "model": "veo-3.1-fast",
    "prompt": "a lighthouse at dusk ☂",
    "aspect_ratio": "16:9",
    "resolution": "4k",
    "duration": 8,
    "mode": "frame",
    "style": "anime",
    "image_urls": [PICTURE, "https://example.org/a.png"],
    "video_urls": ["https://example.org/v.mp4"],
    "audio_urls": ["https://example.org/a.mp3"],
    "watermark": False,
    "private": True,
}
OTHER: dict[str, Any] = {
    "model": "sora-2",
    "prompt": "a lighthouse at dusk",
    "aspect_ratio": "9:16",
    "resolution": "4K",
    "duration": 10,
    "mode": "fun",
    "style": "comic",
    "image_urls": ["https://example.org/a.png", PICTURE],
    "video_urls": ["https://example.org/w.mp4"],
    "audio_urls": ["https://example.org/b.mp3"],
    "watermark": True,
    "private": False,
    "take": 2,
}


def request(**fields: Any) -> GenerationRequest:
    return GenerationRequest(**{"model": "gpt-4o-image", "prompt": "a lighthouse", **fields})


def key(base_url: str = BASE_URL, **fields: Any) -> str:
    return request(**fields).receipt_key(base_url)


def problems(**fields: Any) -> dict[str, Problem]:
    with pytest.raises(InvalidRequest) as caught:
        request(**fields)
    return {problem.field: problem for problem in caught.value.problems}


# ---------------------------------------------------------------- keys


def test_the_keys_of_this_version_never_change() -> None:
    # Another key means that the next run of every user buys again. A new format needs a new version and a bridge.
    assert key(**EVERYTHING) == "v1-d5073ad27d2f-25ed482e06dd4cc6ba429f7851f1175c-take-1"
    assert key(prompt="a") == "v1-ce3f271e6a35-e7df9b1ea0027460cfb25a8d54d4e048-take-1"
    assert key(prompt="a", take="Take One").endswith("-take.62967c83cd738c0e")


@pytest.mark.parametrize("field", OTHER)
def test_every_field_is_part_of_what_is_bought(field: str) -> None:
    assert key(**EVERYTHING) != key(**{**EVERYTHING, field: OTHER[field]})


@pytest.mark.parametrize("field", [name for name in EVERYTHING if name not in ("model", "prompt")])
def test_a_field_left_out_is_another_purchase_than_the_field_set(field: str) -> None:
    assert key(**EVERYTHING) != key(**{name: value for name, value in EVERYTHING.items() if name != field})


@pytest.mark.parametrize("spelling", [{"image_urls": []}, {"image_urls": None}, {"duration": None}, {"take": "1"}])
def test_what_means_the_same_has_the_same_key(spelling: dict[str, Any]) -> None:
    assert key(**spelling) == key()


@pytest.mark.parametrize(
    "base_url",
    [
        "https://veogen.studio/api/v1/",
        "HTTPS://VEOGEN.studio/api/v1",
        " https://veogen.studio/api/v1\n",
        "https://veogen.studio:443/api/v1",
    ],
)
def test_the_spelling_of_the_base_url_does_not_matter(base_url: str) -> None:
    assert key(base_url) == key()
    assert normal_base_url(base_url) == BASE_URL


@pytest.mark.parametrize(
    "base_url",
    [
        "https://api.veogen.studio/api/v1",
        "https://veogen.studio/API/v1",
        "http://veogen.studio/api/v1",
        "https://veogen.studio:8443/api/v1",
    ],
)
def test_another_api_is_another_purchase(base_url: str) -> None:
    assert key(base_url) != key()


def test_an_asset_is_its_digest_and_not_its_link() -> None:
    moved = PICTURE.model_copy(update={"uri": "file:///elsewhere.png", "source_url": "https://x/y", "size": 2})
    changed = PICTURE.model_copy(update={"sha256": "cd" * 32})
    assert key(image_urls=[PICTURE]) == key(image_urls=[moved])
    assert key(image_urls=[PICTURE]) != key(image_urls=[changed])
    assert key(image_urls=[PICTURE]) != key(image_urls=["https://example.org/a.png"])


def test_the_order_of_inputs_is_part_of_what_is_bought() -> None:
    one, two = "https://example.org/1.png", "https://example.org/2.png"
    assert key(image_urls=[one, two]) != key(image_urls=[two, one])
    assert key(image_urls=(one, two)) == key(image_urls=[one, two])


def test_inputs_without_an_order_are_refused() -> None:
    # A set has another order in every process: the same flow would buy again after a restart.
    assert (
        "list" in problems(image_urls={"https://example.org/1.png", "https://example.org/2.png"})["image_urls"].message
    )


def test_takes_which_a_case_blind_file_system_confuses_have_different_keys() -> None:
    takes = ["a", "A", "b", "B", "straße", "STRASSE", "x" * 40, "x" * 41, "a/b", "a b", "..", -1, 0, "2026-11-24"]
    keys = [key(take=take) for take in takes]
    assert len({one.casefold() for one in keys}) == len(takes)
    assert all("/" not in one and " " not in one and len(one) < 120 and one.isascii() for one in keys)


@settings(deadline=None)
@given(
    take=st.integers(-(10**17), 10**17)
    | st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="{}"))
)
def test_any_take_makes_a_file_name_and_equal_takes_equal_ones(take: int | str) -> None:
    if str(take).strip():
        name = key(take=take)
        assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-._")
        assert name == key(take=str(take))


def content_key(**fields: Any) -> str:
    return ReceiptKey.parse(request(**fields).receipt_key(BASE_URL)).content_key


def test_takes_of_a_request_share_the_content_key_and_lookalikes_its_beginning() -> None:
    base = content_key()
    assert content_key(take=2) == base
    assert key().startswith(base)
    # What differs only in fields that the service doesn't show may be confused, and so stands side by side.
    assert content_key(aspect_ratio="16:9")[:15] == base[:15]
    assert content_key(prompt="other")[:15] != base[:15]


# ---------------------------------------------------------------- what is wrong with a request


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("model", "", "must not be empty"),
        ("model", 7, "must be text"),
        pytest.param("model", "gpt\ud83d", "contains half a character", id="model-surrogate"),
        ("model", "gpt\x00", r"control character '\x00'"),
        ("prompt", " \n", "empty"),
        pytest.param(
            "prompt", "x" * (MAX_PROMPT_CHARACTERS + 1), "2001 characters long; at most 2000", id="prompt-long"
        ),
        pytest.param("prompt", "half an emoji \ud83d", "surrogate", id="surrogate"),
        ("prompt", "a bell \x07", r"control character '\x07'"),
        ("prompt", "a sign \x92 read wrongly", r"control character '\x92'"),
        ("prompt", "a fox on {scheduled:%A}", r"holds {scheduled:%A}, which only takes"),
        ("aspect_ratio", 16, "must be text"),
        ("duration", "8", "must be a whole number"),
        ("duration", 8.0, "must be a whole number"),
        ("duration", True, "must be a whole number"),
        ("watermark", "yes", "must be true or false"),
        ("private", 1, "must be true or false"),
        ("image_urls", "https://example.org/a.png", "list of URLs, local files or Assets"),
        ("image_urls", ["https://example.org/a.png"] * 15, "15 images; at most 14"),
        ("image_urls", ["data:image/png;base64,AAAA"], "item 0"),
        ("image_urls", ["https://example.org/a.png", "s3://bucket/"], "item 1"),
        ("image_urls", ["https://"], "item 0"),
        ("video_urls", ["https://example.org/a b.mp4"], "item 0"),
        ("audio_urls", ["https://example.org/a.mp3", 7], "item 1: must be a URL, a local file or an Asset"),
        ("audio_urls", [{"uri": "https://example.org/a.mp3"}], "item 0: must be a URL, a local file or an Asset"),
        ("image_urls", ["https://a/1.png,https://a/2.png"], "in a cell separated by spaces, without commas"),
        ("image_urls", ["https://a/1.png, https://a/2.png"], "contains two links; give each by itself"),
        ("image_urls", ["s3://bucket/1.png s3://bucket/2.png"], "contains two links; give each by itself"),
        ("image_urls", ["https://a/1.png,", "https://a/2.png"], "item 0 ('https://a/1.png,') begins or ends"),
        ("video_urls", ["https://a/1.mp4", "https://a/2.mp4;"], "item 1 ('https://a/2.mp4;') begins or ends"),
        ("audio_urls", ["https://a/1.mp3", ";", "https://a/2.mp3"], "item 1 (';') begins or ends with a comma"),
        ("image_urls", ["s3://bucket/1.png", ",s3://bucket/2.png"], "item 1 (',s3://bucket/2.png') begins or ends"),
        ("image_urls", ["./1.png,", PICTURE], "item 0 ('./1.png,') begins or ends with a comma"),
        ("image_urls", ["https://a/1.png", "https://a/2.png;https://a/3.png"], "item 1 ('https://a/2.png;https://a/3"),
        ("image_urls", ["http://[::1"], "is not a valid http:// or https:// URL"),
        ("image_urls", ["http://a:99999/"], "is not a valid http:// or https:// URL"),
        ("image_urls", ["http://user@/a.png"], "is not a valid http:// or https:// URL"),
        ("image_urls", ["https://a/\x00.png"], r"item 0 ('https://a/\x00.png') contains the control character"),
        ("take", "  ", "empty"),
        ("take", 1.5, "must be text or a whole number"),
        ("take", True, "must be text or a whole number"),
        ("take", "{scheduled:%Y-%m-%d}", "prefect_veogen.schedule.take_of_slot"),
        ("take", "a}", "contains braces"),
        pytest.param("take", 10**5000, "digits", id="take-huge"),
        pytest.param("duration", 10**5000, "digits", id="duration-huge"),
    ],
)
def test_a_wrong_value_names_field_value_and_reason(field: str, value: Any, says: str) -> None:
    found = problems(**{field: value})
    assert list(found) == [field]
    assert says in found[field].message
    assert str(found[field]).startswith(f"{field}: ")
    assert found[field].value is not None


@pytest.mark.parametrize("url", ["https://a.b/i.png?size=1,2;3", "http://[::1]:8/i.png", "https://ü.example/ä,b.png"])
def test_a_link_is_passed_on_as_it_was_given(url: str) -> None:
    assert request(image_urls=[url]).image_urls == (url,)


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(InvalidRequest) as caught:
        GenerationRequest(prompt="", duration="8", seed=1)
    assert {problem.field for problem in caught.value.problems} == {"model", "prompt", "duration", "seed"}
    assert all(f"- {problem.field}: " in str(caught.value) for problem in caught.value.problems)


def test_an_unknown_field_names_the_known_ones_and_the_nearest() -> None:
    found = problems(aspect_ration="16:9")["aspect_ration"]
    assert (found.value, found.nearest) == ("16:9", "aspect_ratio")
    assert "image_urls" in (found.allowed or ())
    assert "nearest: aspect_ratio" in str(found)


def test_one_model_takes_more_images_as_its_own_page_says() -> None:
    images = ["https://example.org/a.png"] * 16
    assert len(request(model="gpt-image-2", image_urls=images).image_urls or ()) == 16
    assert "at most 16" in problems(model="gpt-image-2", image_urls=[*images, images[0]])["image_urls"].message


WRONG = {"model": "m", "prompt": "p", "promt": "q"}


@pytest.mark.parametrize("door", ["init", "validate", "json"])
def test_every_door_to_a_request_refuses_with_the_same_error(door: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        if door == "init":
            GenerationRequest(**WRONG)
        elif door == "validate":
            GenerationRequest.model_validate(WRONG)
        else:
            GenerationRequest.model_validate_json('{"model": "m", "prompt": "p", "promt": "q"}')
    assert [(problem.field, problem.nearest) for problem in caught.value.problems] == [("promt", "prompt")]


@pytest.mark.parametrize("nonsense", [None, 5, [], "text", b"\xff"])
def test_what_is_no_request_at_all_is_refused_as_one(nonsense: Any) -> None:
    with pytest.raises(InvalidRequest):
        GenerationRequest.model_validate(nonsense)
    with pytest.raises(InvalidRequest):
        GenerationRequest.model_validate_json(b"\xff")


def test_a_request_inside_another_model_reports_its_problems_there() -> None:
    class Order(BaseModel):
        wanted: GenerationRequest

    with pytest.raises(ValidationError, match=r"promt: is not a field .*nearest: prompt"):
        Order.model_validate({"wanted": WRONG})


def test_a_flow_takes_a_request_as_a_parameter_and_names_what_is_wrong_with_it() -> None:
    def wanted(request: GenerationRequest) -> None:
        raise AssertionError(request)

    flow = Flow(wanted)
    parameters = flow.validate_parameters({"request": {"model": "m", "prompt": "p", "image_urls": ["https://x/y"]}})
    assert parameters["request"] == request(model="m", prompt="p", image_urls=["https://x/y"])
    with pytest.raises(ParameterTypeError, match=r"promt: is not a field .*nearest: prompt"):
        flow.validate_parameters({"request": WRONG})


@pytest.mark.parametrize("value", [threading.Lock(), {"deep": threading.Lock()}, lambda: None])
def test_the_error_can_be_pickled_whatever_was_handed_in(value: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        request(style=value)
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == str(caught.value)
    assert again.problems[0].field == "style"


# ---------------------------------------------------------------- values


def test_only_fields_that_were_set_are_sent_and_false_is_set() -> None:
    assert request().set_fields() == {"model": "gpt-4o-image", "prompt": "a lighthouse"}
    assert list(request(**EVERYTHING).set_fields()) == list(EVERYTHING)
    assert request(watermark=False).set_fields()["watermark"] is False


def test_a_prompt_is_sent_as_it_was_given() -> None:
    assert request(prompt="  two\n\tlines\u2028 ").set_fields()["prompt"] == "  two\n\tlines\u2028 "
    assert key(prompt="a ") != key(prompt="a")


@pytest.mark.parametrize("prompt", ["\r\ntwo\r\n\r\nlines\r\n", "\rtwo\r\rlines\r", "\r\ntwo\n\rlines\n"])
def test_the_line_ends_of_an_editor_are_no_other_prompt(prompt: str) -> None:
    assert request(prompt=prompt).set_fields()["prompt"] == "\ntwo\n\nlines\n"
    assert key(prompt=prompt) == key(prompt="\ntwo\n\nlines\n")
    assert len(request(prompt="x" * (MAX_PROMPT_CHARACTERS - 2) + "\r\ny").prompt) == MAX_PROMPT_CHARACTERS


@pytest.mark.parametrize(
    "fields",
    [
        {"image_urls": ["https://me:hunter2@b.example/a.png?id=7&X-Amz-Signature=hunter2&b=c d"]},
        {"image_urls": [f"https://b.example/{'a' * 60}.png?X-Amz-Signature=hunter2", "s3://a/b"]},
        {"image_urls": "https://b.example/a.png?X-Amz-Signature=hunter2"},
        {"image_url": {"url": "https://b.example/a.png?sig=hunter2#hunter2"}},
        {"image_urls": ["https://a.b/1.png?sig=hunter2,https://a.b/2.png?sig=hunter2"]},
    ],
)
def test_an_error_shows_no_signature(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        request(**fields)
    assert "hunter2" not in f"{caught.value} {caught.value.problems!r}"
    assert "://" in str(caught.value)


def test_a_prompt_in_an_error_is_shown_as_it_is() -> None:
    assert request(prompt="no? #1").prompt == "no? #1"
    assert problems(prompt="why?\x07not #1@x")["prompt"].value == "why?\x07not #1@x"


@pytest.mark.parametrize(
    "value", [request(**EVERYTHING), PICTURE, Generation(id="g", price_usd=Decimal("0.30"), parameters={"a": [1]})]
)
def test_values_survive_pickle_and_json_and_cannot_be_changed(value: BaseModel) -> None:
    assert pickle.loads(pickle.dumps(value)) == value
    assert type(value).model_validate_json(value.model_dump_json()) == value
    with pytest.raises(ValidationError, match="frozen"):
        value.model = "other"  # type: ignore[attr-defined]


def test_money_never_passes_through_a_binary_fraction() -> None:
    assert str(Generation(id="g", price_usd=0.1).price_usd) == "0.1"  # type: ignore[arg-type]
    assert str(PICTURE.model_copy().price_usd) == "0.02"
