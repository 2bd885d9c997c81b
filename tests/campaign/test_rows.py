"""Rows from records: the columns of one's own, templates, labels, variants and pictures of other rows."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from prefect_veogen.campaign.options import MAX_VARIANTS, RowOptions
from prefect_veogen.campaign.reading import rows_of
from prefect_veogen.campaign.records import read_records
from prefect_veogen.campaign.rows import Rows
from prefect_veogen.errors import ConfigurationError, InvalidManifest

ROW: dict[str, Any] = {"id": "fox", "model": "gpt-4o-image", "prompt": "a red fox"}


async def rows(*records: dict[str, Any], **options: Any) -> Rows:
    return rows_of(await read_records(list(records)), RowOptions(**options))


async def problems_of(*records: dict[str, Any], **options: Any) -> list[str]:
    with pytest.raises(InvalidManifest) as caught:
        await rows(*records, **options)
    return list(caught.value.problems)


# ---------------------------------------------------------------- columns that are taken along


async def test_columns_are_taken_along_in_their_own_order_in_every_run() -> None:
    names = [f"{letter}{number}" for number in range(9, 0, -1) for letter in "zay"]
    (row,) = await rows(ROW | dict.fromkeys(names, 1) | {"z9": None}, carry="*")
    assert list(row.carried) == names


@pytest.mark.parametrize(
    "name", ["Aspect_Ratio", "MOTION_PROMPT", "Status", "Price_USD", "Label_Team", "Image_label_x"]
)
@pytest.mark.parametrize("everything", [True, False])
async def test_a_column_that_differs_from_one_of_ours_in_case_only_is_refused(name: str, everything: bool) -> None:
    carry: Any = "*" if everything else [name]
    (problem,) = await problems_of(ROW | {name: "x"}, ROW | {"id": "b", name: "x"}, carry=carry)
    assert problem.startswith(f"row 1 (fox): {name}: differs from {name.lower()!r} in upper and lower case only; ")
    ours = name in ("Aspect_Ratio", "MOTION_PROMPT", "Label_Team")
    assert problem.endswith(
        f"; name it {name.lower()!r}, or something else" if ours else "; rename it to something else"
    )


@pytest.mark.parametrize("name", ["image_label_score", "video_label_x"])
async def test_a_column_named_like_a_label_that_something_was_bought_with_is_refused(name: str) -> None:
    (problem,) = await problems_of(ROW | {name: 0.5}, carry="*")
    assert problem == f"row 1 (fox): {name}: is a column of the results; rename it to something else"


async def test_a_column_without_a_name_is_never_taken_along() -> None:
    (problem,) = await problems_of(ROW | {"": 7}, carry="*")
    assert problem == "row 1 (fox): (no heading): is a column without a name; name it, or leave it out of your table"


async def test_columns_are_taken_along_by_name_or_all_of_them() -> None:
    record = ROW | {"sku": 7, "locale": "de", "label_team": "x"}
    (row,) = await rows(record, carry="*")
    assert row.carried == {"sku": 7, "locale": "de"}
    (row,) = await rows(record, carry=["sku", "locale"])
    assert row.carried == {"sku": 7, "locale": "de"}
    assert "locale" in (await problems_of(record, carry=["sku"]))[0]


async def test_what_is_taken_along_is_no_part_of_what_is_bought() -> None:
    (one,) = await rows(ROW | {"sku": 7, "label_project": "spring"}, carry="*", labels={"team": "x"})
    (other,) = await rows(ROW)
    assert one.request == other.request


async def test_an_unknown_column_is_refused_once_with_the_nearest_field_and_the_way_to_take_it_along() -> None:
    found = await problems_of(ROW | {"promt": "x"}, ROW | {"id": "b", "promt": "y"})
    assert len(found) == 1
    assert found[0].startswith("row 1 (fox): promt: is not a field of a row (got 'x')")
    assert "nearest: prompt" in found[0]
    assert found[0].endswith("; or take it along with carry=['promt'] (--carry promt)")
    (spaced,) = await problems_of(ROW | {"Product name": "x"})
    assert spaced.endswith("carry=['Product name'] (--carry 'Product name')")


async def test_a_column_that_no_row_has_can_not_be_taken_along() -> None:
    assert await problems_of(ROW | {"locale": "de"}, carry=["locle", "locale"]) == [
        "locle: no row has such a column; nearest: locale"
    ]


async def test_a_column_whose_cells_are_all_empty_is_taken_along() -> None:
    (row,) = await rows(ROW | {"locale": None}, carry=["locale"])
    assert row.carried == {"locale": None}
    (row,) = await rows(ROW | {"locale": float("nan")}, carry="*")
    assert row.carried == {"locale": None}


@pytest.mark.parametrize("name", ["motion_promt", "aspectratio", "Motion_Prompt", "status", "note"])
async def test_whether_a_column_is_known_does_not_depend_on_its_cells(name: str) -> None:
    (empty,) = await problems_of(ROW | {name: None}, ROW | {"id": "b"})
    (filled,) = await problems_of(ROW | {name: "x"}, ROW | {"id": "b"})
    wanted = filled.removeprefix("row 1 (fox): ").replace(" (got 'x')", "")
    assert empty in (wanted, f"{wanted}, or leave out what is empty")


async def test_the_many_columns_of_an_export_are_one_problem_beside_those_that_may_be_typos() -> None:
    export: dict[str, Any] = {f"Option{number} Value": "x" for number in range(30)} | {
        "Vendor": None,
        "motion_promt": "x",
    }
    typo, others = await problems_of(ROW | export, ROW | {"id": "b"} | export)
    assert typo.startswith("row 1 (fox): motion_promt: is not a field of a row (got 'x'); allowed: id, ")
    assert others.startswith("'Option0 Value', 'Option1 Value', ")
    assert "'Option19 Value' and 11 more are not fields of a row; allowed: id, model, prompt, " in others
    assert others.endswith(
        "take along some with carry=['Option0 Value', …] (--carry 'Option0 Value' …), or all of them with carry=\"*\" "
        "(--carry '*')"
    )


async def test_what_a_whole_table_lacks_is_said_once_and_first() -> None:
    table = [{"ID": number, "Prompt": "x", "style": None, "color": None} for number in range(100)]
    table[7]["duration"] = "ten"
    found = await problems_of(*table, motion_template="the {color} one, {size}")
    assert [problem.partition(", ")[0].partition("; ")[0] for problem in found] == [
        "size: no row has such a column",
        "id: is required",
        "color: all its cells are empty",
        "model: is required",
        "prompt: is required",
        "row 1: ID: differs from 'id' in upper and lower case only",
        "row 1: Prompt: differs from 'prompt' in upper and lower case only",
        "row 8: duration: must be a whole number (got 'ten')",
    ]
    assert found[4] == "prompt: is required, and no row has such a column; nearest: Prompt"


async def test_what_some_rows_have_is_said_of_each_of_the_others() -> None:
    assert await problems_of({"id": "a", "prompt": "x"}, ROW, {"id": "c", "model": "m", "motion_mode": "fun"}) == [
        "row 1 (a): model: is required",
        "row 3 (c): prompt: is required",
        "row 3 (c): motion_prompt: is required by the other motion_ fields",
    ]


async def test_a_star_in_a_list_takes_all_columns_along_too() -> None:
    (row,) = await rows(ROW | {"sku": 7}, carry=["*"])
    assert row.carried == {"sku": 7}


@pytest.mark.parametrize("name", ["status", "price_usd", "image_uri", "finished_at"])
async def test_a_column_named_like_one_of_the_results_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="the results have a column"):
        RowOptions(carry=[name])
    assert await problems_of(ROW | {name: "x"}, carry="*") == [
        f"row 1 (fox): {name}: is a column of the results; rename it to something else"
    ]


@pytest.mark.parametrize("carry", ["sku", [1], 5])
def test_carry_is_a_list_of_columns_or_a_star(carry: Any) -> None:
    with pytest.raises(ConfigurationError, match="carry="):
        RowOptions(carry=carry)


# ---------------------------------------------------------------- templates


async def test_a_template_fills_prompts_from_columns_as_people_write_them() -> None:
    columns = {"color": "red", "Product name": "kettle", "count": 8.0, "liters": Decimal("1.5")}
    (row,) = await rows(
        {"id": "a", "model": "m"} | columns,
        prompt_template="{count} {color} {Product name}s of {liters} l, studio light",
        motion_template="the {Product name} turns",
        carry="*",
    )
    assert row.request.prompt == "8 red kettles of 1.5 l, studio light"
    assert row.motion is not None
    assert row.motion["prompt"] == "the kettle turns"


async def test_a_template_takes_its_columns_along_and_leaves_a_prompt_of_the_rows_own() -> None:
    first, second = await rows(
        {"id": "a", "model": "m", "color": "red"},
        {"id": "b", "model": "m", "color": "blue", "prompt": "my own"},
        prompt_template="A {color} kettle",
    )
    assert (first.request.prompt, second.request.prompt) == ("A red kettle", "my own")
    assert (first.carried, second.carried) == ({"color": "red"}, {"color": "blue"})


async def test_a_missing_value_of_a_template_is_named_with_its_row() -> None:
    filled = {"id": "a", "model": "m", "color": "red"}
    assert await problems_of(filled, {"id": "b", "model": "m", "color": ""}, prompt_template="A {color} kettle") == [
        "row 2 (b): prompt: the column 'color' of its template is empty"
    ]
    found = await problems_of(filled, prompt_template="A {colour} kettle", carry="*")
    assert "colour: no row has such a column; nearest: color" in found


@pytest.mark.parametrize("word", ["NULL", "nan", " #N/A ", "None"])
async def test_a_word_for_a_gap_is_never_filled_into_a_prompt(word: str) -> None:
    (found,) = await problems_of(
        {"id": "a", "model": "m", "prompt": "x", "color": word}, motion_template="the {color} one"
    )
    assert found.startswith("row 1 (a): motion_prompt: the column 'color' of its template reads like a gap (got ")
    assert found.endswith("; write what is meant"), "an empty cell would be refused, too"


@pytest.mark.parametrize(
    ("value", "said"), [(["red", "blue"], "is a list"), ({"hex": 1}, "is a dict"), (float("inf"), "is infinite")]
)
async def test_what_is_no_text_or_number_is_not_filled_into_a_prompt(value: Any, said: str) -> None:
    (found,) = await problems_of({"id": "a", "model": "m", "color": value}, prompt_template="A {color} kettle")
    assert found.startswith(f"row 1 (a): prompt: the column 'color' of its template {said}")


@pytest.mark.parametrize("prompt", ["a {color} kettle", "a { color } kettle", "a {{color}} kettle", "{name}"])
@pytest.mark.parametrize("field", ["prompt", "motion_prompt"])
async def test_a_placeholder_that_nothing_fills_in_is_refused(prompt: str, field: str) -> None:
    (found,) = await problems_of(ROW | {field: prompt})
    assert found.startswith(f"row 1 (fox): {field}: holds the placeholder {{")


@pytest.mark.parametrize(
    ("field", "option"), [("prompt", "prompt_template"), ("motion_prompt", "motion_template")], ids=["picture", "clip"]
)
@pytest.mark.parametrize("is_given", [True, False])
async def test_what_a_placeholders_refusal_says_is_the_end_of_it(field: str, option: str, is_given: bool) -> None:
    text, record = "A {color} hat", ROW | {"color": "red"}
    given: dict[str, Any] = {option: text} if is_given else {}
    (found,) = await problems_of(record | {field: text}, carry="*", **given)
    assert r"write \{color\} if the service is to get it" in found
    assert f"in {option} (--{option.replace('_', '-')}) and this cell is empty" in found
    (filled,) = await rows(record | {field: ""}, **{option: text})
    (as_it_is,) = await rows(record | {field: r"A \{color\} hat"}, carry="*", **given)
    made = [row.request.prompt if field == "prompt" else (row.motion or {})["prompt"] for row in (filled, as_it_is)]
    assert made == ["A red hat", text]


@pytest.mark.parametrize(("template", "color"), [("A {color} hat", "{dark} red"), ("A {{color}} hat", "dark")])
async def test_a_placeholder_that_a_template_brings_is_told_to_come_from_it(template: str, color: str) -> None:
    bare = {"id": "fox", "model": "gpt-4o-image", "color": color}
    (found,) = await problems_of(bare, prompt_template=template)
    assert r"holds {dark} when its template is filled in; write \{dark\} if the service is to get it" in found


@pytest.mark.parametrize(
    "prompt",
    ['{"scene": "a fox", "mood": {"light": "soft"}}', "{two words}", "{}", "a } b {", r"a \ b", r'\{"mood": "soft"\}'],
)
async def test_json_prompts_and_lone_braces_are_bought_as_they_are(prompt: str) -> None:
    (row,) = await rows(ROW | {"prompt": prompt})
    assert row.request.prompt == prompt


@pytest.mark.parametrize("prompt", [r"a \{literal\} brace", r"a \{literal} brace"])
async def test_escaped_braces_are_bought_as_braces_wherever_a_prompt_comes_from(prompt: str) -> None:
    (row,) = await rows(ROW | {"prompt": prompt, "motion_prompt": prompt})
    assert row.motion is not None
    assert row.request.prompt == row.motion["prompt"] == "a {literal} brace"
    bare = {"id": "fox", "model": "gpt-4o-image", "color": prompt}
    (row,) = await rows(bare, prompt_template=r"{color}, and \{two words\}")
    assert row.request.prompt == "a {literal} brace, and {two words}"


@pytest.mark.parametrize("option", ["prompt_template", "motion_template"])
@pytest.mark.parametrize("name", ["id", "style", "label_team"])
async def test_a_template_can_not_name_a_field_which_would_seem_empty(option: str, name: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"^{option}=.*: {{{name}}} is a field of the row itself; copy it"):
        await rows(ROW, **{option: f"A hat, {{{name}}}"})
    (row,) = await rows(ROW | {"a copy": "x", name: "a"}, **{option: "A hat, {a copy}"}, carry="*")
    assert row.carried == {"a copy": "x"}


@pytest.mark.parametrize("name", ["prompt_template", "motion_template"])
@pytest.mark.parametrize("template", ["", "  ", 5])
def test_a_template_is_text(name: str, template: Any) -> None:
    with pytest.raises(ConfigurationError, match=name):
        RowOptions(**{name: template})


# ---------------------------------------------------------------- labels


async def test_labels_of_the_row_win_over_those_of_the_campaign() -> None:
    first, second = await rows(
        ROW | {"label_project": "spring"}, ROW | {"id": "b"}, labels={"project": "autumn", "team": "x"}
    )
    assert first.labels == {"project": "spring", "team": "x"}
    assert second.labels == {"project": "autumn", "team": "x"}


async def test_a_label_is_the_same_number_where_the_column_has_gaps() -> None:
    first, second = await rows(ROW | {"label_team": 7.0}, ROW | {"id": "b", "label_team": float("nan")})
    assert (first.labels, second.labels) == ({"team": "7"}, {})


async def test_a_label_that_can_not_be_one_is_named_with_its_row() -> None:
    (found,) = await problems_of(ROW | {"label_Project X": "spring"})
    assert found.startswith("row 1 (fox): ")
    assert "Project X" in found


# ---------------------------------------------------------------- variants


async def test_variants_are_takes_of_the_row() -> None:
    assert [row.key for row in await rows(ROW, variants=4)] == [
        ("fox", "1"),
        ("fox", "1.2"),
        ("fox", "1.3"),
        ("fox", "1.4"),
    ]
    daily = await rows(ROW | {"variants": 2}, ROW | {"id": "one"}, take="2026-11-24")
    assert [row.key for row in daily] == [("fox", "2026-11-24"), ("fox", "2026-11-24.2"), ("one", "2026-11-24")]


@pytest.mark.parametrize("variants", [0, -1, MAX_VARIANTS + 1, 1.5, "x", True])
async def test_a_number_of_variants_that_can_not_be_made_is_refused(variants: Any) -> None:
    assert "variants: must be a whole number from 1 to" in (await problems_of(ROW | {"variants": variants}))[0]
    with pytest.raises(ConfigurationError, match="variants="):
        RowOptions(variants=variants)


# ---------------------------------------------------------------- pictures of other rows


async def test_a_row_may_use_the_pictures_of_others_wherever_they_stand() -> None:
    user, hero = await rows(
        ROW | {"id": "user", "image_urls": ["https://example.com/x.png", "row:hero"]}, ROW | {"id": "hero"}
    )
    assert (user.uses, hero.uses) == (("hero",), ())


async def test_a_picture_of_an_unknown_row_is_refused_with_the_nearest() -> None:
    assert await problems_of(ROW | {"image_urls": ["row:hreo"]}, ROW | {"id": "hero"}) == [
        "row 1 (fox): image_urls: row:hreo: there is no row 'hreo'; nearest: hero"
    ]


async def test_rows_that_use_each_others_pictures_in_a_circle_are_refused() -> None:
    found = await problems_of(
        ROW | {"id": "a", "image_urls": ["row:b"]},
        ROW | {"id": "b", "image_urls": ["row:c"]},
        ROW | {"id": "c", "image_urls": ["row:a"]},
    )
    assert len(found) == 1
    assert "in a circle: " in found[0]
    assert "in a circle: fox → fox" in (await problems_of(ROW | {"image_urls": ["row:fox"]}))[0]


async def test_a_chain_of_a_thousand_rows_is_no_circle() -> None:
    chain = [ROW | {"id": str(n), "image_urls": [f"row:{n + 1}"]} for n in range(999)]
    assert len(await rows(*chain, ROW | {"id": "999"})) == 1000


# ---------------------------------------------------------------- many


@pytest.mark.slow
async def test_a_hundred_thousand_rows_of_a_generator_are_held_in_little_memory() -> None:
    records = ({**ROW, "id": str(n), "prompt": f"fox number {n}", "sku": n} for n in range(100_000))
    found = rows_of(await read_records(records), RowOptions(carry="*"))
    assert len(found) == 100_000
    assert found[99_999].carried == {"sku": 99_999}
    assert sum(map(len, found._pickles)) < 100_000 * 700
