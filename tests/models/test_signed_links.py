"""A link that is signed anew each run stays the same input; everything else in a query still distinguishes inputs."""

from __future__ import annotations

from typing import Any

import boto3
import pytest
from botocore.config import Config

from prefect_veogen import GenerationRequest
from prefect_veogen.models.signed_links import without_signature

BASE_URL = "https://veogen.studio/api/v1"
FILE = "https://media.example.org/a%20b/in.png"
SIGNED = {
    "S3 version 4": "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIA%2F20261124%2Fus-east-1%2Fs3%2Faws4_request"
    "&X-Amz-Date=20261124T120000Z&X-Amz-Expires=900&X-Amz-SignedHeaders=host&X-Amz-Security-Token=IQoJb3%2F"
    "&X-Amz-Signature=secret",
    "S3 version 4, lower case": "x-amz-credential=AKIA%2Fus-east-1&x-amz-signature=secret&x-amz-security-token=secret",
    "S3 version 4, percent-encoded": "X%2DAmz%2DCredential=AKIA&X%2DAmz%2DSignature=secret",
    "S3 version 2": "AWSAccessKeyId=AKIA&Signature=secret%3D&Expires=1795521600&x-amz-security-token=secret",
    "GCS version 4": "X-Goog-Algorithm=GOOG4-RSA-SHA256&X-Goog-Credential=me%40x.iam&X-Goog-Date=20261124T120000Z"
    "&X-Goog-Expires=900&X-Goog-SignedHeaders=host&X-Goog-Signature=secret",
    "GCS version 2": "GoogleAccessId=me%40x.iam&Expires=1795521600&Signature=secret",
    "Azure service": "sv=2024-11-04&st=2026-11-24T12%3A00Z&se=2026-11-24T13%3A00Z&sr=b&sp=r&spr=https&sip=1.2.3.4"
    "&rscc=no-cache&rscd=inline&rsct=image%2Fpng&sig=secret%3D",
    "Azure policy": "sv=2024-11-04&sr=c&si=reader&sig=secret",
    "Azure account": "sv=2024-11-04&ss=b&srt=o&sp=r&se=2026-11-24T13%3A00Z&sig=secret",
    "Azure user delegation": "skoid=1&sktid=2&skt=3&ske=4&sks=b&skv=2024-11-04&skdutid=8&saoid=5&suoid=6&sduoid=9"
    "&scid=7&sdd=2&ses=scope&sv=2024-11-04&se=2026-11-24T13%3A00Z&sr=d&sp=r&sig=secret",
    "CloudFront canned": "Expires=1795521600&Signature=secret~&Key-Pair-Id=K2JC&Hash-Algorithm=SHA256",
    "CloudFront custom": "Policy=eyJTdGF0ZW1lbnQ_&Signature=secret~&Key-Pair-Id=K2JC",
}


def key(*links: str, **fields: Any) -> str:
    request = GenerationRequest(model="gpt-4o-image", prompt="a lighthouse", image_urls=links or None, **fields)
    return request.receipt_key(BASE_URL)


@pytest.mark.parametrize("query", SIGNED.values(), ids=SIGNED)
def test_a_signature_identifies_nothing_wherever_it_stands(query: str) -> None:
    assert without_signature(f"{FILE}?{query}") == FILE
    for link in (f"{FILE}?id=7&{query}&versionId=%2F3", f"{FILE}?{query}&id=7&versionId=%2F3&"):
        assert without_signature(f"{link}#top") == f"{FILE}?id=7&versionId=%2F3#top"
    assert key(f"{FILE}?{query}") == key(FILE) != key(f"{FILE}?id=7&{query}")


@pytest.mark.parametrize("version", ["s3v4", "s3"])
def test_a_link_that_boto3_signs_twice_is_one_input(version: str) -> None:
    def signed(seconds: int, token: str) -> str:
        options: dict[str, Any] = {"aws_access_key_id": token, "aws_secret_access_key": "s", "aws_session_token": token}
        s3 = boto3.client("s3", region_name="us-east-1", config=Config(signature_version=version), **options)
        where = {"Bucket": "bucket", "Key": "a b/in.png", "VersionId": "3", "ResponseContentType": "image/png"}
        return str(s3.generate_presigned_url("get_object", Params=where, ExpiresIn=seconds))

    first, second = signed(60, "one"), signed(90, "two")
    assert first != second
    assert key(first) == key(second)
    kept = without_signature(first).partition("?")[2].split("&")
    assert sorted(kept) == ["response-content-type=image%2Fpng", "versionId=3"]


@pytest.mark.parametrize(
    "query",
    [
        "",
        "&",
        "a=1&&b",
        "Expires=1795521600",
        "Expires=1795521600&Signature=x",
        "Signature=x&Policy=y",
        "sig=x",
        "sig=x&sv=1",
        "sv=1&sr=b&se=2026",
        "X-Amz-Signature=x",
        "X-Amz-Date=1&X-Amz-Credential=me",
        "token=x&signature=y&expires=z",
    ],
)
def test_what_is_not_seen_to_be_a_whole_signature_stays_part_of_the_link(query: str) -> None:
    assert without_signature(f"{FILE}?{query}") == f"{FILE}?{query}"
    assert without_signature(f"{FILE}#?{SIGNED['S3 version 2']}") == f"{FILE}#?{SIGNED['S3 version 2']}"
    assert key(f"{FILE}?{query}") != key(FILE)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (
            {"image_urls": ["https://example.org/a.png?id=7&versionId=3&response-content-type=image%2Fpng"]},
            "v1-5e4396d4f573-3a95595eb7826e46c771dad4f83932dc-take-1",
        ),
        (
            {"image_urls": ["https://example.org/a.png?Expires=1700000000&id=7"]},
            "v1-5e4396d4f573-2684c34ac143d7690c0fe22525e1d56e-take-1",
        ),
        (
            {"image_urls": ["https://example.org/a.png?sig=a&v=1", "http://example.org/b?X-Amz-Date=1#part"]},
            "v1-5e4396d4f573-11966285154016bca5bdd0eb7ea96bdb-take-1",
        ),
        (
            {"image_urls": ["https://b.s3.amazonaws.com/a.png?"], "video_urls": ["https://example.org/v.mp4?&a=&b"]},
            "v1-5e4396d4f573-a73fa6c8331da582f8fc92f2c79292b0-take-1",
        ),
        ({"prompt": "two\nlines"}, "v1-282ad056ff2d-60e104811803776f904d06f24d7e0f1c-take-1"),
        (
            {"prompt": "tab\there\n\n", "take": "2026-11-24"},
            "v1-15b0f3651da5-9296310acdbf5ba1de70dd90ad92ee46-take-2026-11-24",
        ),
    ],
)
def test_what_is_not_signed_and_has_plain_line_ends_keeps_the_key_it_always_had(
    fields: dict[str, Any], expected: str
) -> None:
    request = GenerationRequest(**{"model": "gpt-4o-image", "prompt": "a lighthouse", **fields})
    assert request.receipt_key(BASE_URL) == expected
    assert request.unsigned() == request
