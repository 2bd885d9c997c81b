"""What S3 errors mean: transient, or a permission, credential or name that has to be corrected."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prefect_veogen.errors import StoreRefused, StoreUnavailable
from prefect_veogen.masking import masked

if TYPE_CHECKING:
    from collections.abc import Iterator

    from botocore.exceptions import BotoCoreError, ClientError

_RUN_AGAIN = "then run it again: nothing was lost."
_FOUND_BY_BOTO3 = (
    "that boto3 finds (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_PROFILE, "
    "`aws sso login`, a role)"
)
_BUNDLE_STEP = (
    "Set AWS_CA_BUNDLE (or REQUESTS_CA_BUNDLE) to a file that holds the certificate authority of the S3 service, "
    f"{_RUN_AGAIN}"
)

_PERMISSIONS = {
    "GetObject": "s3:GetObject",
    "HeadObject": "s3:GetObject",
    "PutObject": "s3:PutObject",
    "CreateMultipartUpload": "s3:PutObject",
    "UploadPart": "s3:PutObject",
    "CompleteMultipartUpload": "s3:PutObject",
    "AbortMultipartUpload": "s3:AbortMultipartUpload",
    "ListObjectsV2": "s3:ListBucket",
    "ListMultipartUploads": "s3:ListBucketMultipartUploads",
}
_BUCKET_PERMISSIONS = ("s3:ListBucket", "s3:ListBucketMultipartUploads")

# Documented error codes of S3 (API reference, "Error responses"), and those of STS that reach us through boto3.
_CREDENTIALS = {
    "AuthFailure",
    "ExpiredToken",
    "ExpiredTokenException",
    "InvalidAccessKeyId",
    "InvalidClientTokenId",
    "InvalidSecurity",
    "InvalidToken",
    "NotSignedUp",
    "SignatureDoesNotMatch",
    "TokenRefreshRequired",
    "UnrecognizedClientException",
}
_NO_BUCKET = {"NoSuchBucket", "InvalidBucketName"}
_WRONG_REGION = {"AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "PermanentRedirect", "301"}
# botocore's errors by name: not every version has all of them.
_NO_CREDENTIALS = {
    "CredentialRetrievalError",
    "InvalidConfigError",
    "NoAuthTokenError",
    "NoCredentialsError",
    "PartialCredentialsError",
    "ProfileNotFound",
    "RefreshWithMFAUnsupportedError",
    "SSOError",
    "SSOTokenLoadError",
    "TokenRetrievalError",
    "UnauthorizedSSOTokenError",
}


@dataclass(frozen=True)
class S3Location:
    """A bucket, the prefix in it, and the object or listing of a call."""

    bucket: str
    prefix: str
    key: str = ""
    access: str = ""
    """Whose credentials are used, if not those that boto3 finds."""

    @property
    def uri(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}"

    @property
    def credentials_step(self) -> str:
        """What to do where the credentials are wrong."""
        which = f"of {self.access}" if self.access else _FOUND_BY_BOTO3
        return f"Renew or correct the credentials {which}, {_RUN_AGAIN}"

    def resource_arn(self, permission: str) -> str:
        """Return the ARN that a policy has to name to allow this."""
        arn = f"arn:aws:s3:::{self.bucket}"
        if permission in _BUCKET_PERMISSIONS:
            return arn
        folder = self.key.removeprefix(self.prefix).rpartition("/")[0]
        return f"{arn}/{self.prefix}{folder + '/' if folder else ''}*"


class S3Refusal(Exception):
    """S3 responded with an error."""

    def __init__(self, error: ClientError, location: S3Location) -> None:
        super().__init__()
        response: Any = error.response
        self.location = location
        self.operation = str(error.operation_name)
        self.status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        self.code = str(response.get("Error", {}).get("Code", ""))
        self.text = str(response.get("Error", {}).get("Message", ""))
        headers = response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
        self.region = str(response.get("Error", {}).get("Region") or headers.get("x-amz-bucket-region") or "")

    def to_error(self) -> StoreRefused | StoreUnavailable:
        """Return `StoreRefused` where the setup has to change, else the transient `StoreUnavailable`."""
        reason = f"{self.code} (HTTP {self.status}). {self.text}"
        bucket, uri, access = self.location.bucket, self.location.uri, self.location.access
        step = self.location.credentials_step
        if self.operation not in _PERMISSIONS:
            # boto3 calls other services first, such as STS for a role.
            return StoreRefused(
                f"The credentials for {uri} can't be obtained: {self.operation}: {reason}", next_step=step
            )
        if self.code in _CREDENTIALS:
            return StoreRefused(f"The store at {uri} refuses the credentials: {reason}", next_step=step)
        if self.code == "RequestTimeTooSkewed":
            return StoreRefused(
                f"The store at {uri} refuses this machine's clock: {reason}", next_step=f"Set the clock, {_RUN_AGAIN}"
            )
        if self.code in _NO_BUCKET:
            return StoreRefused(
                f"There is no bucket {bucket}: {reason}",
                next_step=f"Create it, or correct {access or 'VEOGEN_STORE'}, {_RUN_AGAIN}",
            )
        if self.code in _WRONG_REGION:
            region = f" to {self.region}" if self.region else " to the bucket's"
            setting = f"the region of {access}" if access else "AWS_DEFAULT_REGION"
            return StoreRefused(
                f"The bucket {bucket} is in another region: {reason}",
                next_step=f"Set {setting}{region} (or AWS_ENDPOINT_URL_S3 to its endpoint), {_RUN_AGAIN}",
            )
        if self.status == 403:
            return self._denied(reason)
        return StoreUnavailable(f"The store at {uri} refused: {reason}")

    def _denied(self, reason: str) -> StoreRefused:
        # AWS may name the permission itself; it can be that of a KMS key.
        named = re.search(r"not authorized to perform: ([\w-]+:\w+)", self.text)
        permission = named[1] if named else _PERMISSIONS[self.operation]
        missing = f"{permission} on {self.location.resource_arn(permission)}"
        if not named and permission == "s3:GetObject":
            missing += (
                f", and s3:ListBucket on {self.location.resource_arn('s3:ListBucket')} (without it S3 "
                "responds the same to a missing object)"
            )
        return StoreRefused(
            f"The store at {self.location.uri} denies {permission} ({self.location.key or 'a listing'}): {reason}",
            next_step=f"Allow {missing} (the whole policy is in docs/store.md), {_RUN_AGAIN}",
        )


def connection_error(error: BotoCoreError | Exception, location: S3Location) -> StoreRefused | StoreUnavailable:
    """Return what a boto3 error means that came before any response."""
    reason = masked(str(error))
    if _NO_CREDENTIALS & {base.__name__ for base in type(error).__mro__}:
        return StoreRefused(
            f"There are no credentials for {location.uri}: {reason}", next_step=location.credentials_step
        )
    if "CERTIFICATE_VERIFY_FAILED" in reason:
        return StoreRefused(f"The store at {location.uri} can't be trusted: {reason}", next_step=_BUNDLE_STEP)
    return StoreUnavailable(f"The store at {location.uri} could not be reached: {reason}")


@contextlib.contextmanager
def convert_errors(location: S3Location) -> Iterator[None]:
    """Convert every error of botocore, so that none leaves the store."""
    from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError
    from botocore.parsers import ResponseParserError

    try:
        yield
    except ClientError as error:
        raise S3Refusal(error, location).to_error() from None
    except (BotoCoreError, HTTPClientError, ResponseParserError, RecursionError) as error:
        raise connection_error(error, location) from None
