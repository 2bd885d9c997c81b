"""Encodings are undone exactly, however the bytes come, and in small pieces, however much they hold."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_veogen.download.content_encoding import Decoder, Undecodable, content_codings, decoder_of


def bare_deflate(content: bytes) -> bytes:
    engine = zlib.compressobj(wbits=-15)
    return engine.compress(content) + engine.flush()


def members(content: bytes) -> bytes:
    return gzip.compress(content[:10]) + gzip.compress(content[10:])


WAYS: list[tuple[str, Callable[[bytes], bytes]]] = [
    ("gzip", gzip.compress),
    ("gzip", members),
    ("deflate", zlib.compress),
    ("deflate", bare_deflate),
    ("deflate, gzip", lambda content: gzip.compress(zlib.compress(content))),
]


def decoder_for(encoding: str) -> Decoder:
    return decoder_of(content_codings({"content-encoding": encoding}))


def decoded(decoder: Decoder, content: bytes, step: int) -> bytes:
    chunks = (content[start : start + step] for start in range(0, len(content), step))
    return b"".join(piece for chunk in chunks for piece in decoder.decode(chunk))


@given(st.binary(max_size=3000), st.sampled_from(WAYS), st.integers(1, 500), st.sampled_from([b"", b"\0", bytes(600)]))
@settings(max_examples=300, deadline=None)
def test_whatever_was_encoded_comes_back_however_it_comes(
    content: bytes, way: tuple[str, Callable[[bytes], bytes]], step: int, padding: bytes
) -> None:
    encoding, encode = way
    encoded, decoder = encode(content), decoder_for(encoding)
    assert decoded(decoder, encoded + padding, step) == content
    assert decoder.has_ended
    cut = decoder_for(encoding)
    decoded(cut, encoded[: len(encoded) - 1], step)
    assert not cut.has_ended


@pytest.mark.parametrize(("encoding", "encode"), WAYS)
def test_pieces_are_small_however_much_comes_of_little(encoding: str, encode: Callable[[bytes], bytes]) -> None:
    content = bytes(50_000_000)
    largest = total = 0
    for piece in decoder_for(encoding).decode(encode(content)):
        largest, total = max(largest, len(piece)), total + len(piece)
    assert total == len(content)
    assert largest <= 256 * 1024


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_what_is_not_encoded_as_it_says_is_noticed(encoding: str) -> None:
    with pytest.raises(Undecodable):
        decoded(decoder_for(encoding), b"\x89PNG\r\n\x1a\n" + bytes(range(255)), 50)


@pytest.mark.parametrize(
    ("stated", "codings"),
    [
        ("", ()),
        ("identity", ()),
        ("aws-chunked", ()),
        ("aws-chunked,gzip", ("gzip",)),
        ("X-GZIP", ("gzip",)),
        ("deflate,\tgzip", ("deflate", "gzip")),
    ],
)
def test_a_label_that_says_nothing_is_no_encoding(stated: str, codings: tuple[str, ...]) -> None:
    assert content_codings({"content-encoding": stated}) == codings
