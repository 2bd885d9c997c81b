"""What a bucket's refusals mean: whose turn it is, and which permission, credential or name is missing."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prefect_veogen.errors import StoreRefused, StoreUnavailable, masked

if TYPE_CHECKING:
    from botocore.exceptions import BotoCoreError, ClientError

_AGAIN = "then run it again: nothing was lost."
_CREDENTIALS_STEP = (
    "Renew or correct the credentials that boto3 finds (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, "
    f"AWS_PROFILE, `aws sso login`, a role), {_AGAIN}"
)
_BUNDLE_STEP = (
    "Set AWS_CA_BUNDLE (or REQUESTS_CA_BUNDLE) to a file that holds the certificate authority of the S3 service, "
    f"{_AGAIN}"
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
_ON_THE_BUCKET = ("s3:ListBucket", "s3:ListBucketMultipartUploads")

# The service's documented codes (S3 API reference, "Error responses"), and those of STS that reach us through boto3.
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
_ELSEWHERE = {"AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "PermanentRedirect", "301"}
# botocore's errors by name: which of them there are differs from version to version.
_WITHOUT_CREDENTIALS = {
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
class Place:
    """A bucket, the prefix in it, and the object or listing that was asked for."""

    bucket: str
    prefix: str
    key: str = ""

    @property
    def uri(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}"

    def resource(self, permission: str) -> str:
        """Return what a policy has to name to allow this."""
        arn = f"arn:aws:s3:::{self.bucket}"
        if permission in _ON_THE_BUCKET:
            return arn
        folder = self.key.removeprefix(self.prefix).rpartition("/")[0]
        return f"{arn}/{self.prefix}{folder + '/' if folder else ''}*"


class Refused(Exception):
    """The bucket answered, and said no."""

    def __init__(self, error: ClientError, place: Place) -> None:
        super().__init__()
        response: Any = error.response
        self.place = place
        self.operation = str(error.operation_name)
        self.status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        self.code = str(response.get("Error", {}).get("Code", ""))
        self.text = str(response.get("Error", {}).get("Message", ""))
        headers = response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
        self.region = str(response.get("Error", {}).get("Region") or headers.get("x-amz-bucket-region") or "")

    def told(self) -> StoreRefused | StoreUnavailable:
        """Return the error: `StoreRefused` where the set-up has to change, else one that may pass by itself."""
        said = f"{self.code} (HTTP {self.status}). {self.text}"
        bucket, uri = self.place.bucket, self.place.uri
        if self.operation not in _PERMISSIONS:
            # boto3 asks others first, such as STS for a role.
            return StoreRefused(
                f"The credentials for {uri} can't be had: {self.operation}: {said}", next_step=_CREDENTIALS_STEP
            )
        if self.code in _CREDENTIALS:
            return StoreRefused(f"The store at {uri} refuses the credentials: {said}", next_step=_CREDENTIALS_STEP)
        if self.code == "RequestTimeTooSkewed":
            return StoreRefused(
                f"The store at {uri} refuses this machine's clock: {said}", next_step=f"Set the clock, {_AGAIN}"
            )
        if self.code in _NO_BUCKET:
            return StoreRefused(
                f"There is no bucket {bucket}: {said}", next_step=f"Create it, or correct VEOGEN_STORE, {_AGAIN}"
            )
        if self.code in _ELSEWHERE:
            region = f" to {self.region}" if self.region else " to the bucket's"
            return StoreRefused(
                f"The bucket {bucket} is in another region: {said}",
                next_step=f"Set AWS_DEFAULT_REGION{region} (or AWS_ENDPOINT_URL_S3 to its endpoint), {_AGAIN}",
            )
        if self.status == 403:
            return self._denied(said)
        return StoreUnavailable(f"The store at {uri} refused: {said}")

    def _denied(self, said: str) -> StoreRefused:
        # AWS itself names the permission, which may be that of a key of KMS.
        named = re.search(r"not authorized to perform: ([\w-]+:\w+)", self.text)
        permission = named[1] if named else _PERMISSIONS[self.operation]
        missing = f"{permission} on {self.place.resource(permission)}"
        if not named and permission == "s3:GetObject":
            missing += (
                f", and s3:ListBucket on {self.place.resource('s3:ListBucket')} (without it S3 answers the same for "
                "what isn't there)"
            )
        return StoreRefused(
            f"The store at {self.place.uri} denies {permission} ({self.place.key or 'a listing'}): {said}",
            next_step=f"Allow {missing} (the whole policy is in docs/store.md), {_AGAIN}",
        )


def unreachable(error: BotoCoreError | Exception, place: Place) -> StoreRefused | StoreUnavailable:
    """Return what an error of boto3 means that came before any answer."""
    reason = masked(str(error))
    if _WITHOUT_CREDENTIALS & {base.__name__ for base in type(error).__mro__}:
        return StoreRefused(f"There are no credentials for {place.uri}: {reason}", next_step=_CREDENTIALS_STEP)
    if "CERTIFICATE_VERIFY_FAILED" in reason:
        return StoreRefused(f"The store at {place.uri} can't be trusted: {reason}", next_step=_BUNDLE_STEP)
    return StoreUnavailable(f"The store at {place.uri} could not be reached: {reason}")
