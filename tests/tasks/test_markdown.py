"""Text of other people in an artifact reads as they wrote it, and neither links, loads nor runs anything."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from prefect_veogen.tasks.markdown import code, image, literal

READER = MarkdownIt("commonmark").enable(["table", "strikethrough"])
HOSTILE = [
    "a|b",
    "| a | b | |---|---| | 1 | 2 |",
    "`code` ``more``",
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)> <!-- gone --> <https://example.org>",
    "![x](http://example.org/x.png)",
    "x](javascript:alert(1))",
    "[x](javascript:alert(1)) [a][b]",
    "[x]: http://example.org",
    "# big",
    "#",
    "> quoted",
    "- dash",
    "---",
    "* * *",
    "12. one",
    "1) one",
    "**bold** *it* _it_ __bold__ ~~no~~ ~no~",
    "&lt;b&gt; &#60;",
    "back\\slash \\* end\\",
    "two\nlines\n\n# big\n```\nfence\n```",
    "    indented",
]
MARKS = st.text(st.sampled_from("ab1 \n\\`*_{}[]()<>#+-.!|~&;:/=$\"'"), max_size=20)
ANY = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=30)


def shown(markdown: str) -> str:
    """Return what a reader sees of Markdown that is to be one paragraph of plain text."""
    block = READER.parse(markdown)
    assert [token.type for token in block] == ["paragraph_open", "inline", "paragraph_close"], block
    assert {token.type for token in block[1].children or ()} == {"text"}, block[1].children
    return "".join(token.content for token in block[1].children or ())


@given(MARKS | ANY)
def test_any_text_reads_as_it_was_written(text: str) -> None:
    if line := " ".join(text.split()):
        assert shown(literal(text)) == line
        assert shown(f"Campaign {literal(text)}: 3 ok") == f"Campaign {line}: 3 ok"


@pytest.mark.parametrize("text", HOSTILE)
def test_what_markdown_would_act_upon_is_only_shown(text: str) -> None:
    assert shown(literal(text)) == " ".join(text.split())


@pytest.mark.parametrize(
    "text", ["hero_1-final", "a|b", "2 * 3 #4", "s3://my_bucket/a/b-take-1.png", "got ['16:9'] (422)", "$5 < 6 & 7"]
)
def test_what_does_nothing_stays_as_it_is(text: str) -> None:
    assert literal(text) == text


@given(MARKS | ANY)
@example("```")
@example("`")
def test_code_holds_the_text_character_by_character(text: str) -> None:
    if line := " ".join(text.split()):
        (paragraph,) = [token for token in READER.parse(f"At {code(text)}.") if token.type == "inline"]
        assert [(token.type, token.content) for token in paragraph.children or ()] == [
            ("text", "At "),
            ("code_inline", line),
            ("text", "."),
        ]


@given(MARKS | ANY)
def test_a_picture_shows_nothing_but_the_picture(text: str) -> None:
    html = READER.render(image(text, "data:image/jpeg;base64,AAAA"))
    assert re.fullmatch(r'<p><img src="data:image/jpeg;base64,AAAA" alt="[^"<>]*" /></p>\n', html)
