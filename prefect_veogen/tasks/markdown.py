"""Other people's text inside Markdown: ids, prompts, links and error messages show as they are and do nothing.

Prefect renders the bodies and descriptions of artifacts as Markdown. The cells of a table are Markdown in its older UI,
and plain text in the newer one: only what Markdown would act on is escaped, and most texts stay the same.
"""

from __future__ import annotations

import re

_PUNCTUATION = r"[!-/:-@\[-`{-~]"
_ACTIVE = re.compile(
    rf"\\(?={_PUNCTUATION}|$)"  # would escape what follows
    r"|`"
    r"|\*(?!\s)|(?<!\s)\*|~(?!/)"
    r"|(?<![^\W_])_|_(?![^\W_])"  # not inside of a word
    r"|\](?=[(\[:])"  # a link, or the definition of one
    r"|<(?=[A-Za-z/!?])"
    r"|&(?=#?\w+;)"
    r"|^#(?=#{0,5}(?:\s|$))|^>|^[-+](?=\s|$)|^-(?=[\s-]+$)"
)
_NUMBERED = re.compile(r"^(\d{1,9})([.)])(?=\s|$)")


def literal(text: str) -> str:
    """Return Markdown of one line that reads as the text does."""
    return _NUMBERED.sub(r"\1\\\2", _ACTIVE.sub(r"\\\g<0>", _one_line(text)))


def code(text: str) -> str:
    """Return the text as code: to be copied, character by character."""
    line = _one_line(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    space = " " if "`" in line else ""
    return f"{fence}{space}{line}{space}{fence}"


def image(alt: str, link: str) -> str:
    """Return a picture; `link` is one of ours."""
    shown = re.sub(_PUNCTUATION, r"\\\g<0>", _one_line(alt))
    return f"![{shown}]({link})"


def _one_line(text: str) -> str:
    return " ".join(text.split())
