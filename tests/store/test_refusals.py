"""Every S3 error is converted: the missing permission, credential or name is reported, or it is transient."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from prefect_veogen.errors import (
    STORE_TROUBLE,
    StoreRefused,
    StoreUnavailable,
    VeogenError,
)
from prefect_veogen.store import AlreadyExists, S3Store, VersionConflict
from tests.support.servers import Reply, Request, serving
from tests.support.stores import every_call, failures, in_bucket, refusing

pytestmark = pytest.mark.s3


@pytest.mark.parametrize(
    ("respond", "says"),
    [
        (refusing(400, "InvalidRequest"), "400"),
        (lambda request: Reply(307, {"location": "http://127.0.0.1:9/"}), ""),
        (lambda request: Reply(200, {"content-type": "text/html"}, b"<html>Please sign in", cut_at=12), ""),
    ],
    ids=["400", "redirect", "half a page"],
)
async def test_no_response_of_s3_lets_an_error_of_botocore_out(
    respond: Callable[[Request], Reply], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(respond) as endpoint:
        failed = await failures(in_bucket(monkeypatch, endpoint))
    for call, error in failed.items():
        assert error is None or isinstance(error, VeogenError | VersionConflict | AlreadyExists), (call, repr(error))
        if says:
            assert isinstance(error, StoreUnavailable), call
            assert says in str(error)
            assert "What to do: Check VEOGEN_STORE" in str(error)


PERMISSIONS = {
    "create": "s3:PutObject",
    "replace": "s3:PutObject",
    "put": "s3:PutObject",
    "read": "s3:GetObject",
    "find": "s3:ListBucket",
    "stat": "s3:GetObject",
    "sha256": "s3:GetObject",
    "check": "s3:PutObject",
    "clear_unfinished": "s3:ListBucketMultipartUploads",
    "small writer": "s3:PutObject",
    "large writer": "s3:PutObject",
}


@pytest.mark.parametrize(
    ("status", "code", "says"),
    [
        (403, "AccessDenied", ""),
        (403, "SomethingNew", ""),
        (403, "InvalidAccessKeyId", "AWS_ACCESS_KEY_ID"),
        (403, "SignatureDoesNotMatch", "AWS_SECRET_ACCESS_KEY"),
        (400, "ExpiredToken", "aws sso login"),
        (400, "TokenRefreshRequired", "aws sso login"),
        (403, "RequestTimeTooSkewed", "Set the clock"),
        (404, "NoSuchBucket", "There is no bucket one"),
        (301, "PermanentRedirect", "AWS_DEFAULT_REGION"),
        (400, "AuthorizationHeaderMalformed", "AWS_DEFAULT_REGION"),
    ],
)
async def test_what_only_the_setup_can_cure_is_reported_at_once_by_its_name(
    status: int, code: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    requested: list[str] = []

    def respond(request: Request) -> Reply:
        requested.append(request.path)
        return refusing(status, code)(request)

    with serving(respond) as endpoint:
        store = in_bucket(monkeypatch, endpoint)
        for call, work in every_call(store).items():
            if call == "stat" and status != 403:
                continue  # a response to HEAD has no body, which would name the reason
            requested.clear()
            with pytest.raises(StoreRefused, match="run it again") as caught:
                await work()
            assert len(requested) == 1 or code == "PermanentRedirect", (
                call,
                requested,
            )  # boto3 requests the region itself
            if call != "stat" or not says:
                assert (says or f"{PERMISSIONS[call]} on arn:aws:s3:::one") in str(caught.value), call
            assert "Nothing was bought" not in str(caught.value)


async def test_the_region_of_the_bucket_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    body = b"<Error><Code>AuthorizationHeaderMalformed</Code><Message>No.</Message><Region>eu-west-3</Region></Error>"
    with serving(lambda request: Reply(400, {}, body)) as endpoint:
        store = in_bucket(monkeypatch, endpoint)
        with pytest.raises(StoreRefused, match="Set AWS_DEFAULT_REGION to eu-west-3"):
            await store.put("one", b"1", "text/plain")


async def test_the_permission_that_aws_names_is_the_one_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    text = b"User: me is not authorized to perform: kms:GenerateDataKey on resource: arn:aws:kms:eu-west-1:1:key/2"
    body = b"<Error><Code>AccessDenied</Code><Message>" + text + b"</Message></Error>"
    with serving(lambda request: Reply(403, {}, body)) as endpoint:
        store = in_bucket(monkeypatch, endpoint)
        with pytest.raises(StoreRefused, match=r"kms:GenerateDataKey.*\n.*Allow kms:GenerateDataKey"):
            await store.put("one", b"1", "text/plain")


async def test_a_role_that_cannot_be_assumed_is_a_setup_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    keys = "aws_access_key_id = a\naws_secret_access_key = b\n"
    role = "role_arn = arn:aws:iam::123456789012:role/x\nsource_profile = me\nregion = us-east-1\n"
    (tmp_path / "config").write_text(f"[profile me]\n{keys}[profile one]\n{role}")
    with serving(refusing(403, "AccessDenied")) as endpoint:
        in_bucket(monkeypatch, endpoint)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
        monkeypatch.setenv("AWS_PROFILE", "one")
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", endpoint)
        with pytest.raises(StoreRefused, match="AssumeRole"):
            await S3Store("one", "").put("one", b"1", "text/plain")


@pytest.mark.parametrize("how", ["refused", "dropped", "not xml"])
async def test_an_unreachable_server_lets_no_error_of_botocore_out(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    response = Reply(200, {"content-type": "text/html"}, b"<html><p>Please sign in</html>")
    with serving(lambda request: response if how == "not xml" else None) as endpoint:
        store = in_bucket(monkeypatch, "http://127.0.0.1:9" if how == "refused" else endpoint)
        failed = await failures(store)
    for call, error in failed.items():
        if how == "not xml":
            assert error is None or isinstance(error, VeogenError | VersionConflict | AlreadyExists), (
                call,
                repr(error),
            )
        else:
            assert isinstance(error, STORE_TROUBLE), (call, repr(error))


@pytest.mark.parametrize("call", ["create", "link"])
async def test_missing_credentials_let_no_error_of_botocore_out(
    call: str, s3_server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store = in_bucket(monkeypatch, s3_server)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    store = S3Store("one", "")
    with pytest.raises(StoreRefused, match="credentials"):
        await (store.create("one", b"1") if call == "create" else store.presign("one", 60))
