"""How boto3 reaches a bucket: by what it finds itself, or with the credentials of a saved block."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from prefect_veogen.errors import ConfigurationError
from prefect_veogen.masking import masked
from prefect_veogen.settings import user_agent
from prefect_veogen.store.refusals import convert_errors

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from prefect_veogen.store.refusals import S3Location


@dataclass(frozen=True)
class S3Access:
    """Credentials for a bucket in place of those that boto3 finds; equal ones share connections. Shows no secret."""

    name: str
    """Whose they are, as errors say it."""
    digest: str = field(repr=False)
    """What differs whenever anything about them does."""
    open_session: Callable[[], Any] = field(repr=False, compare=False)
    """Returns a session of boto3; called in a thread."""
    client_options: Mapping[str, Any] = field(repr=False, compare=False)
    """What boto3's client takes besides: endpoint, region, certificates, `config`."""
    lifetime_seconds: float = field(default=math.inf, repr=False, compare=False)
    """For how long a session is used: that of an assumed role expires."""


def make_client(access: S3Access | None, location: S3Location) -> Any:
    """Return a boto3 client for S3; importing boto3 is slow.

    Raises:
        ConfigurationError: boto3 can't work as it is set up.
        StoreRefused, StoreUnavailable: the credentials of `access` can't be obtained, or not now.
    """
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError

    config = Config(signature_version="s3v4", max_pool_connections=50, user_agent_extra=user_agent())
    if not {"AWS_MAX_ATTEMPTS", "AWS_RETRY_MODE"} & os.environ.keys():
        config = config.merge(Config(retries={"mode": "standard", "max_attempts": 5}))
    options = dict(access.client_options) if access else {}
    config = config.merge(options.pop("config", Config()))
    with convert_errors(location):
        session = access.open_session() if access else None
    try:
        # A session that boto3 sets up itself fails as its client does.
        client = (session or boto3.session.Session()).client("s3", config=config, **options)
        _reject_unusable_setup(client.meta.endpoint_url, () if access else _KEYS)
    except (BotoCoreError, ValueError) as error:
        raise ConfigurationError(
            f"boto3 can't reach S3 as it is set up{f' by {access.name}' if access else ''}: {masked(str(error))}",
            next_step="Check what it names: AWS_ENDPOINT_URL_S3 and the other AWS_ variables, boto3's "
            f"profile, or a proxy{', or what the block says' if access else ''}.",
        ) from None
    return client


_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")


def _reject_unusable_setup(endpoint: str, keys: tuple[str, ...]) -> None:
    """Reject settings that boto3 accepts but fails on at every call, quoting them."""
    for name in keys:
        if not is_valid_key(os.environ.get(name, "")):
            raise ValueError(f"{name} has characters that are not valid in a key, such as a line break")
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or parts.port == 0:  # reading an invalid port raises ValueError
        raise ValueError(f"{endpoint} is not a valid endpoint")
    proxy = getproxies().get(parts.scheme, "")
    if proxy and not proxy_bypass(parts.netloc):
        _reject_unusable_proxy(f"{parts.scheme.upper()}_PROXY", proxy if "://" in proxy else f"http://{proxy}")
    for name in ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"):
        bundle = os.environ.get(name)
        if parts.scheme == "https" and bundle and not Path(bundle).exists():
            raise ValueError(f"{name}={bundle}: there is no such file")


def is_valid_key(text: str) -> bool:
    """Return whether a text can be a key, a secret or a token of S3: printable ASCII without spaces, or empty."""
    return re.fullmatch(r"[\x21-\x7e]*", text) is not None


def _reject_unusable_proxy(variable: str, url: str) -> None:
    proxy = urlsplit(url)
    try:
        is_valid = proxy.scheme in ("http", "https") and proxy.hostname and proxy.port != 0
    except ValueError:
        is_valid = False
    if not is_valid:
        raise ValueError(f"{variable}={url} is not an HTTP proxy, the only kind boto3 supports")
