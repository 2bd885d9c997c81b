"""Signed links: the part that identifies the file, and the parameters that only grant access for a while.

Each request for a link gets a new signature. Its parameters identify nothing, and they are a secret while they are
valid.
"""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import unquote_plus

from prefect_veogen.models.text import without_secrets


class _Scheme(NamedTuple):
    """One signature scheme: the parameters that prove its use, and a pattern for all of its parameters."""

    proof: tuple[frozenset[str], ...]
    parameters: str

    def is_used_in(self, names: set[str]) -> bool:
        return any(proof <= names for proof in self.proof)


def _any_of(*proofs: str) -> tuple[frozenset[str], ...]:
    return tuple(frozenset(proof.split()) for proof in proofs)


# A name alone proves nothing: `?expires=` and `?sig=` mean other things elsewhere, and identify what is bought there.
# As documented by AWS (S3's signature versions 4 and 2, CloudFront), Google (Cloud Storage, V4 and V2) and Microsoft
# (shared access signatures for a service, an account and a user's delegation).
_SCHEMES = (
    _Scheme(_any_of("x-amz-signature x-amz-credential"), "x-amz-.+"),
    _Scheme(_any_of("awsaccesskeyid signature expires"), "awsaccesskeyid|signature|expires|x-amz-security-token"),
    _Scheme(
        _any_of("key-pair-id signature expires", "key-pair-id signature policy"),
        "key-pair-id|signature|expires|policy|hash-algorithm",
    ),
    _Scheme(_any_of("x-goog-signature x-goog-credential"), "x-goog-.+"),
    _Scheme(_any_of("googleaccessid signature expires"), "googleaccessid|signature|expires"),
    _Scheme(
        _any_of("sig sv sr se", "sig sv sr si", "sig sv ss srt"),
        "sig|s[veprits]|srt|sip|spr|sdd|ses|sk(oid|tid|[tesv]|dutid)|s(a|u|du)oid|scid|rsc[cdelt]",
    ),
)


def without_signature(link: str) -> str:
    """Return a link without its signature's parameters; an unsigned one is returned unchanged."""
    address, mark, rest = link.partition("?")
    query, hash_sign, fragment = rest.partition("#")
    parts = [(_name(part), part) for part in query.split("&")]
    names = {name for name, _ in parts}
    signing = [scheme.parameters for scheme in _SCHEMES if scheme.is_used_in(names)]
    if not signing or "#" in address:
        return link
    kept = [part for name, part in parts if part and not any(re.fullmatch(pattern, name) for pattern in signing)]
    return f"{address}{mark if kept else ''}{'&'.join(kept)}{hash_sign}{fragment}"


LEFT_OUT = "?…"


def without_queries(link: str) -> str:
    """Return a link as it may be written down: its query may be a secret, and `?…` says that it is left out."""
    if not re.match("https?://", link, re.IGNORECASE):
        return link
    unsigned = without_signature(link)
    plain = without_secrets(unsigned)
    return plain if plain == unsigned else f"{plain}{LEFT_OUT}"


def _name(parameter: str) -> str:
    return unquote_plus(parameter.partition("=")[0]).lower()
