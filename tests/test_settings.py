"""Settings come from the environment when they are used; a wrong one is named, and the token is never shown."""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from prefect_veogen import Settings
from prefect_veogen.errors import ConfigurationError
from prefect_veogen.models import LabelBudget
from prefect_veogen.sandbox import Sandbox

TOKEN = "vg-secret-4711"


@pytest.mark.parametrize(
    ("variable", "text", "value"),
    [
        ("VEOGEN_BASE_URL", "HTTPS://API.veogen.studio/api/v1/", "https://api.veogen.studio/api/v1"),
        ("VEOGEN_BASE_URL", "http://127.0.0.1:8000/api/v1", "http://127.0.0.1:8000/api/v1"),
        ("VEOGEN_STORE", "s3://bucket/prefix", "s3://bucket/prefix"),
        ("VEOGEN_REQUESTS_PER_MINUTE", "2", 2),
        ("VEOGEN_IMAGE_POLL_SECONDS", "0.5", 0.5),
        ("VEOGEN_VIDEO_POLL_SECONDS", "10", 10.0),
        ("VEOGEN_WAIT_TIMEOUT_SECONDS", "1", 1.0),
        ("VEOGEN_BUDGET_USD", "0", Decimal(0)),
        ("VEOGEN_BUDGET_USD", "12.3456", Decimal("12.3456")),
        ("VEOGEN_IN_DOUBT_SECONDS", "0.2", 0.2),
        ("VEOGEN_IN_DOUBT_SECONDS", "0", 0.0),
        ("VEOGEN_IN_DOUBT_SECONDS", " Never ", "never"),
        ("VEOGEN_BUDGETS", "{}", {}),
        (
            "VEOGEN_BUDGETS",
            '{"p:a:b": 20.10, "t:w": {"usd": 0}, "t:x": {"per": "month", "usd": 1}, "t:y": {"usd":2,"per":"day"}}',
            {
                "p:a:b": LabelBudget(Decimal("20.10")),
                "t:w": LabelBudget(Decimal(0)),
                "t:x": LabelBudget(Decimal(1), "month"),
                "t:y": LabelBudget(Decimal(2), "day"),
            },
        ),
        ("VEOGEN_ALLOW_PRIVATE_MEDIA", "0", False),
        ("VEOGEN_MAX_ASSET_BYTES", "1000", 1000),
    ],
)
def test_a_variable_sets_its_field(variable: str, text: str, value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, text)
    assert getattr(Settings(), variable.removeprefix("VEOGEN_").lower()) == value


def test_the_defaults_are_the_documented_ones() -> None:
    settings = Settings()
    assert (settings.base_url, settings.requests_per_minute) == ("https://veogen.studio/api/v1", 120)
    assert (settings.image_poll_seconds, settings.video_poll_seconds) == (3, 5)
    assert settings.api_token is settings.budget_usd is settings.wait_timeout_seconds is None
    assert settings.in_doubt_seconds == 900


NEVER_EMPTY = {"budget_usd", "budgets", "base_url", "store"}


@pytest.mark.parametrize("name", sorted(Settings.model_fields.keys() - NEVER_EMPTY))
def test_an_empty_variable_is_an_unset_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"VEOGEN_{name.upper()}", "")
    assert getattr(Settings(), name) == Settings.model_fields[name].default


@pytest.mark.parametrize("name", sorted(NEVER_EMPTY))
@pytest.mark.parametrize("text", ["", " "])
def test_a_cap_a_service_or_a_store_set_to_nothing_is_refused(
    name: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"VEOGEN_{name.upper()}", text)
    with pytest.raises(ConfigurationError, match=f"VEOGEN_{name.upper()} is empty"):
        Settings()


MISSPELT_CAPS = [
    "BUDGET",
    "BUDGET_US",
    "budgetusd",
    "DAY_BUDGET_USD",
    "BUDGTES",
    "DAILY_BUDGET",
    "BUDGET_PER_DAY",
    "MONTHLY_BUDGET",
    "BUDGETS_USD",
    "MAX_BUDGET_USD",
    "BUDGET_EUR",
    "_BUDGET_USD",
    "DAILY_BUGET",
    "SPEND_LIMIT",
    "MAX_SPENDING",
    "LIMIT_USD",
    "DAILY_CAP",
    "CAPS",
]
PREFIXES = ("VEOGEN_", "PREFECT_INTEGRATIONS_VEOGEN_")


@pytest.mark.parametrize("misspelt", MISSPELT_CAPS)
@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_misspelt_cap_is_refused_for_it_would_be_none(
    prefix: str, misspelt: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"{prefix}{misspelt}", "5")
    right = rf"{prefix}BUDGET_USD \(.*per UTC day\) or {prefix}BUDGETS \(by label"
    told = rf"^{prefix}{misspelt} is not a setting, .* no cap\n.*{right}"
    with pytest.raises(ConfigurationError, match=told):
        Settings()


@pytest.mark.parametrize("misspelt", MISSPELT_CAPS)
@pytest.mark.parametrize("place", ["prefect.toml", "pyproject.toml", ".env", "as advised in .env"])
def test_a_misspelt_cap_is_refused_in_every_file_and_the_names_in_its_advice_are_caps_there(
    place: str, misspelt: str
) -> None:
    if place in TABLES:
        Path(place).write_text(f"[{TABLES[place]}]\n{misspelt.lower()} = 5\n")
    else:
        Path(".env").write_text(f"{PREFIXES[place != '.env']}{misspelt}=5\n")
    with pytest.raises(
        ConfigurationError, match=r"no cap\n.*(?i:budget_usd).*\(.*per UTC day\) or .*(?i:budgets).*\(by label"
    ) as no:
        Settings()
    names = re.findall(r"[\w.]*(?:BUDGET_USD|BUDGETS|budget_usd|budgets)(?= )", str(no.value).partition("\n")[2])
    assert len(names) == 2
    for name in names:
        Path(".env").unlink(missing_ok=True)
        if place in TABLES:
            table, _, field = name.rpartition(".")
            Path(place).write_text(f"[{table}]\n{field} = {5 if 'usd' in field else {}}\n")
        else:
            Path(".env").write_text(f"{name}={5 if 'USD' in name else {}}\n")
        assert Settings().budget_usd == (5 if "usd" in name.lower() else None)


@pytest.mark.parametrize("prefix", ["PREFECT_VEOGEN_", "PREFECT_INTEGRATION_VEOGEN_", "PREFECT_INTEGRATIONS__VEOGEN_"])
@pytest.mark.parametrize("name", ["BUDGET_USD", "DAILY_BUDGET"])
@pytest.mark.parametrize("is_in_dotenv", [False, True])
def test_a_cap_by_another_prefix_of_ours_is_refused(
    prefix: str, name: str, is_in_dotenv: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_in_dotenv:
        Path(".env").write_text(f"{prefix}{name}=5\n")
    else:
        monkeypatch.setenv(f"{prefix}{name}", "5")
    meant = PREFIXES[is_in_dotenv] + "BUDGET_USD"
    with pytest.raises(ConfigurationError, match=rf"^{prefix}{name}.* is not read, .*\n.*Rename it to {meant}\b"):
        Settings()


def test_a_misspelt_cap_among_the_arguments_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"^Settings\(budget=…\) is not a setting, .*\n.* to budget_usd= \("):
        Settings(budget=5)


def test_caps_by_label_in_dotenv_need_no_quotes() -> None:
    Path(".env").write_text('PREFECT_INTEGRATIONS_VEOGEN_BUDGETS={"project:spring": 20}\n')
    assert Settings().budgets == {"project:spring": LabelBudget(Decimal(20))}


def test_a_cap_in_a_table_that_is_not_read_is_refused() -> None:
    Path("prefect.toml").write_text("[integrations.veogen.limits]\nbudget_usd = 5\n")
    with pytest.raises(ConfigurationError, match=r"integrations\.veogen\.limits in prefect\.toml is not a setting"):
        Settings()


@pytest.mark.parametrize("name", ["VEOGEN_BUDGET_SERVICE_HOST", "VEOGEN_BUDGET_PORT", "VEOGEN_BUDGET_PORT_80_TCP_ADDR"])
def test_what_kubernetes_derives_from_a_services_name_is_no_cap(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "tcp://10.0.0.1:80")
    assert Settings().budget_usd is None


@pytest.mark.parametrize(
    "name", ["OTHER_BUDGET_USD", "MY_VEOGEN_BUDGET_USD", "PREFECT_BUDGET_USD", "VEOGENBUDGET", "VEOGEN_CAPACITY"]
)
def test_another_programs_cap_is_none_of_ours(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "5")
    Path(".env").write_text(f"{name}=5\n")
    assert Settings().budget_usd is None


def test_every_setting_that_there_is_passes_as_none_that_is_misspelt() -> None:
    lines = [
        f"PREFECT_INTEGRATIONS_VEOGEN_{name.upper()}=" for name in Settings.model_fields if name not in NEVER_EMPTY
    ]
    Path(".env").write_text("\n".join([*lines, "VEOGEN_REQUESTS_LIMIT_NAME=x"]))
    assert Settings() == Settings()


def test_another_misspelt_variable_is_reported_with_the_name_it_should_have(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("VEOGEN_WAIT_TIMEOUT", "5")
    assert Settings().wait_timeout_seconds is None
    assert "VEOGEN_WAIT_TIMEOUT is not a setting" in caplog.text
    assert "is VEOGEN_WAIT_TIMEOUT_SECONDS meant?" in caplog.text


SWITCHES = ("VEOGEN_BUY_AGAIN_WHEN_UNKNOWN", "PREFECT_INTEGRATIONS_VEOGEN_BUY_AGAIN_WHEN_UNKNOWN")


@pytest.mark.parametrize("text", ["0", "False", "off", ""])
@pytest.mark.parametrize("name", SWITCHES)
def test_a_replaced_switch_that_is_off_is_refused_and_what_to_write_instead_means_the_same(
    name: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, text)
    delay = name.replace("BUY_AGAIN_WHEN_UNKNOWN", "IN_DOUBT_SECONDS")
    with pytest.raises(ConfigurationError, match=rf'^{name} is .* it was off\n.*set {delay} to "never"'):
        Settings()
    monkeypatch.delenv(name)
    monkeypatch.setenv(delay, "never")
    assert Settings().in_doubt_seconds == "never"


@pytest.mark.parametrize("name", SWITCHES)
def test_a_replaced_switch_that_is_on_is_warned_of_and_its_value_not_taken_over(
    name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(name, "true")
    assert Settings().in_doubt_seconds == 900
    assert f"{name} is not a setting of prefect-veogen, and ignored; unset it: what is proven" in caplog.text


def test_a_replaced_delay_is_warned_of_and_its_value_not_taken_over(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("VEOGEN_UNKNOWN_GRACE_SECONDS", "30")
    assert Settings().in_doubt_seconds == 900
    assert "VEOGEN_UNKNOWN_GRACE_SECONDS is not a setting of prefect-veogen, and ignored; unset it" in caplog.text
    assert "don't give its value to VEOGEN_IN_DOUBT_SECONDS" in caplog.text


def test_a_variable_that_may_be_another_programs_is_reported_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("VEOGEN_PORT", "VEOGEN_SERVICE_HOST"):
        monkeypatch.setenv(name, "tcp://10.0.0.1:80")
    assert Settings() == Settings()
    assert sorted(record.getMessage().split()[0] for record in caplog.records) == ["VEOGEN_PORT", "VEOGEN_SERVICE_HOST"]


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("VEOGEN_BASE_URL", "veogen.studio/api/v1"),
        ("VEOGEN_BASE_URL", "ftp://veogen.studio"),
        ("VEOGEN_REQUESTS_PER_MINUTE", "1"),
        ("VEOGEN_REQUESTS_PER_MINUTE", "many"),
        ("VEOGEN_REQUESTS_PER_MINUTE", "1000001"),
        ("VEOGEN_WAIT_TIMEOUT_SECONDS", "1e12"),
        ("VEOGEN_IN_DOUBT_SECONDS", "1e12"),
        ("VEOGEN_MAX_ASSET_BYTES", "1" + "0" * 20),
        ("VEOGEN_BUDGET_USD", "1e400"),
        ("VEOGEN_IMAGE_POLL_SECONDS", "0"),
        ("VEOGEN_IMAGE_POLL_SECONDS", "inf"),
        ("VEOGEN_VIDEO_POLL_SECONDS", "-1"),
        ("VEOGEN_VIDEO_POLL_SECONDS", "nan"),
        ("VEOGEN_WAIT_TIMEOUT_SECONDS", "0"),
        ("VEOGEN_WAIT_TIMEOUT_SECONDS", "nan"),
        ("VEOGEN_REQUEST_TIMEOUT_SECONDS", "inf"),
        ("VEOGEN_BUDGET_USD", "-0.01"),
        ("VEOGEN_BUDGET_USD", "NaN"),
        ("VEOGEN_BUDGET_USD", "Infinity"),
        ("VEOGEN_BUDGET_USD", "5 USD"),
        ("VEOGEN_IN_DOUBT_SECONDS", "inf"),
        ("VEOGEN_IN_DOUBT_SECONDS", "-1"),
        ("VEOGEN_IN_DOUBT_SECONDS", "perhaps"),
        ("VEOGEN_MAX_ASSET_BYTES", "0"),
    ],
)
def test_an_impossible_value_is_refused_by_name(variable: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, text)
    monkeypatch.setenv("VEOGEN_API_TOKEN", TOKEN)
    with pytest.raises(ConfigurationError, match=re.escape(f"{variable}='{text}': ")) as caught:
        Settings()
    assert TOKEN not in str(caught.value) + repr(caught.value.__dict__)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("project:spring=20", "must be JSON such as"),
        ('{"project:spring": 20', "must be JSON such as"),
        ("{project:spring: 20}", "a shell needs '…' around it"),
        ("[" * 10_000, "must be JSON such as"),
        ("20", "must be a JSON object"),
        ('["project:spring"]', "must be a JSON object"),
        ('{"spring": 20}', "'spring': must be a label and its value"),
        ('{"Project:spring": 20}', "'Project:spring': a label's name must be"),
        ('{"project:": 20}', "'project:': a label's value must not be blank"),
        ('{"project: spring": 20}', "nor begin or end with a space"),
        ('{"project:*": 20}', "there is no cap for each"),
        ('{"project:' + "ü" * 100 + '": 20}', "is too long"),
        ('{"project:spring": -1}', "'project:spring': must be an amount in USD, from 0"),
        ('{"project:spring": 1e10}', "must be an amount in USD"),
        ('{"project:spring": NaN}', "NaN is not a valid amount"),
        ('{"project:spring": 1e999}', "must be an amount in USD"),
        ('{"project:spring": true}', "must be an amount in USD"),
        ('{"project:spring": "20"}', "must be an amount in USD"),
        ('{"project:spring": null}', "must be an amount in USD"),
        ('{"project:spring": {"per": "month"}}', "must be an amount in USD"),
        ('{"project:spring": {"usd": -1, "per": "month"}}', "must be an amount in USD"),
        ('{"project:spring": {"usd": 1, "per": "week"}}', 'alone or as {"usd": 20, "per": "month"} (or "day")'),
        ('{"project:spring": {"usd": 1, "per": null}}', "must be an amount in USD"),
        ('{"project:spring": {"usd": 1, "per": ["day"]}}', "must be an amount in USD"),
        ('{"project:spring": {"usd": 1, "from": "today"}}', "must be an amount in USD"),
        ('{"project:spring": 5, "project:spring": 50}', "'project:spring' is there twice"),
    ],
)
def test_a_cap_by_label_that_has_another_form_is_refused_and_says_which_forms_there_are(
    text: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VEOGEN_BUDGETS", text)
    with pytest.raises(ConfigurationError, match=rf"^VEOGEN_BUDGETS=.*{re.escape(told)}"):
        Settings()


@pytest.mark.parametrize("text", ["ftp://user:secret@veogen.studio", "veogen.studio/api?key=secret", "9" * 400])
def test_what_is_refused_is_shown_in_short_and_without_secrets(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VEOGEN_REQUESTS_PER_MINUTE" if text.isdigit() else "VEOGEN_BASE_URL", text)
    with pytest.raises(ConfigurationError) as caught:
        Settings()
    assert "secret" not in str(caught.value)
    assert len(caught.value.message) < 150


def test_all_impossible_values_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("VEOGEN_BUDGET_USD", "VEOGEN_IMAGE_POLL_SECONDS"):
        monkeypatch.setenv(variable, "-1")
    with pytest.raises(ConfigurationError, match=r"VEOGEN_IMAGE_POLL_SECONDS.*VEOGEN_BUDGET_USD"):
        Settings()


def test_an_impossible_token_is_refused_without_being_shown() -> None:
    with pytest.raises(ConfigurationError, match=r"VEOGEN_API_TOKEN=\(hidden\)") as caught:
        Settings(api_token={"secret": TOKEN})
    error = caught.value
    assert TOKEN not in f"{error} {error!r} {error.__dict__} {error.__cause__}"
    assert error.__suppress_context__


def test_the_token_is_hidden_wherever_settings_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VEOGEN_API_TOKEN", TOKEN)
    settings = Settings()
    assert settings.api_token is not None
    assert settings.api_token.get_secret_value() == TOKEN
    assert TOKEN not in f"{settings} {settings!r} {settings.model_dump()} {settings.model_dump_json()}"


def test_settings_are_read_when_they_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Settings()
    monkeypatch.setenv("VEOGEN_STORE", "elsewhere")
    assert (before.store, Settings().store) == ("veogen-store", "elsewhere")


def test_an_argument_comes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VEOGEN_STORE", "from-the-environment")
    assert Settings(store="from-the-argument").store == "from-the-argument"


def test_settings_survive_pickle() -> None:
    assert pickle.loads(pickle.dumps(Settings(store="x"))) == Settings(store="x")


# ---------------------------------------------------------------- where Prefect keeps an integration's settings

TABLES = {"prefect.toml": "integrations.veogen", "pyproject.toml": "tool.prefect.integrations.veogen"}
# From the first to the last that is looked at; the value is the place's number.
PLACES = ("VEOGEN_STORE", "PREFECT_INTEGRATIONS_VEOGEN_STORE", ".env", *TABLES)


def give(monkeypatch: pytest.MonkeyPatch, place: str, value: str) -> None:
    """Set the store in one of the places."""
    if place in TABLES:
        Path(place).write_text(f'[{TABLES[place]}]\nstore = "{value}"\n')
    elif place == ".env":
        Path(place).write_text(f"OTHER=1\nPREFECT_INTEGRATIONS_VEOGEN_STORE={value}\n")
    else:
        monkeypatch.setenv(place, value)


@pytest.mark.parametrize("first", range(len(PLACES)))
def test_of_all_places_the_first_one_counts(first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, place in enumerate(PLACES):
        if number >= first:
            give(monkeypatch, place, f"place-{number}")
    assert Settings().store == f"place-{first}"
    assert Settings(store="argument").store == "argument"


@pytest.mark.parametrize("place", TABLES)
def test_a_table_holds_every_kind_of_value(place: str) -> None:
    Path(place).write_text(
        f"[{TABLES[place]}]\nbudget_usd = 20.10\nimage_poll_seconds = 0.5\nrequests_per_minute = 60\n"
        f'in_doubt_seconds = "never"\nallow_private_media = true\nmax_asset_bytes = 1000\napi_token = "{TOKEN}"\n'
        f'[{TABLES[place]}.budgets]\n"project:spring" = 20.1\n"team:web" = {{usd = 5, per = "month"}}\n'
    )
    settings = Settings()
    assert (settings.budget_usd, settings.image_poll_seconds) == (Decimal("20.10"), 0.5)
    assert (settings.requests_per_minute, settings.max_asset_bytes) == (60, 1000)
    assert (settings.in_doubt_seconds, settings.allow_private_media) == ("never", True)
    assert settings.budgets == {
        "project:spring": LabelBudget(Decimal("20.1")),
        "team:web": LabelBudget(Decimal(5), "month"),
    }
    assert settings.api_token is not None
    assert TOKEN not in repr(settings)


def test_an_empty_variable_unsets_it_whatever_later_places_say(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("prefect.toml").write_text('[integrations.veogen]\ncredentials = "the-real-account"\n')
    monkeypatch.setenv("PREFECT_INTEGRATIONS_VEOGEN_CREDENTIALS", "another-real-account")
    assert Settings().credentials == "another-real-account"
    monkeypatch.setenv("VEOGEN_CREDENTIALS", "")
    assert Settings().credentials is None


def test_no_file_leads_from_the_sandbox_to_the_real_service(sandbox: Sandbox) -> None:
    lines = ['credentials = "real"', 'base_url = "https://veogen.studio/api/v1"', 'api_token = "real"']
    Path("prefect.toml").write_text("\n".join(["[integrations.veogen]", *lines]))
    settings = Settings()
    assert (settings.credentials, settings.base_url) == (None, sandbox.base_url)
    assert settings.api_token is not None
    assert settings.api_token.get_secret_value() == sandbox.token


def test_a_file_that_has_changed_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("one", "another", "a-third"):
        give(monkeypatch, "prefect.toml", value)
        assert Settings().store == value
    Path("prefect.toml").unlink()
    assert Settings().store == "veogen-store"


@pytest.mark.parametrize(
    ("text", "shown", "meant"),
    [
        ("PREFECT_INTEGRATIONS_VEOGEN_BUDGET", "", "PREFECT_INTEGRATIONS_VEOGEN_BUDGET_USD"),
        (".env", "PREFECT_INTEGRATIONS_VEOGEN_BUDGET in .env", "PREFECT_INTEGRATIONS_VEOGEN_BUDGET_USD in .env"),
        ("prefect.toml", "integrations.veogen.budget in prefect.toml", "integrations.veogen.budget_usd in prefect"),
        ("pyproject.toml", "prefect.integrations.veogen.budget in pyproject.toml", "budget_usd in pyproject"),
    ],
)
@pytest.mark.parametrize("is_empty", [False, True])
def test_a_cap_that_is_misspelt_or_empty_is_refused_there_too_and_the_place_named(
    text: str, shown: str, meant: str, is_empty: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "budget_usd" if is_empty else "budget"
    if text in TABLES:
        Path(text).write_text(f"[{TABLES[text]}]\n{name} = {chr(34) * 2 if is_empty else 5}\n")
    elif text == ".env":
        Path(text).write_text(f"PREFECT_INTEGRATIONS_VEOGEN_{name.upper()}={'' if is_empty else '5'}\n")
    else:
        monkeypatch.setenv(f"PREFECT_INTEGRATIONS_VEOGEN_{name.upper()}", "" if is_empty else "5")
    told = f"{meant}.* is empty" if is_empty else f"{shown or text} is not a setting, .*\n.*{meant}"
    with pytest.raises(ConfigurationError, match=told):
        Settings()


def test_an_impossible_value_in_a_file_is_refused_by_its_place() -> None:
    Path("pyproject.toml").write_text("[tool.prefect.integrations.veogen]\nbudget_usd = -1\n")
    where = "tool.prefect.integrations.veogen.budget_usd in pyproject.toml="
    with pytest.raises(ConfigurationError, match=re.escape(where)):
        Settings()


@pytest.mark.parametrize("file", TABLES)
@pytest.mark.parametrize(
    "written", ["20", "[20]", '"project:spring=20"', "'20'", '{"project:spring" = {usd = 1, per = "week"}}']
)
def test_caps_by_label_of_a_wrong_form_in_a_table_are_refused_with_lines_that_work_there(
    file: str, written: str
) -> None:
    Path(file).write_text(f"[{TABLES[file]}]\nbudgets = {written}\n")
    with pytest.raises(
        ConfigurationError, match=rf"^{re.escape(TABLES[file])}\.budgets in {re.escape(file)}="
    ) as caught:
        Settings()
    told = re.fullmatch(r".*lines below (\[.*\]): (.*), or (.*)\.", caught.value.next_step)
    assert told is not None
    Path(file).write_text("\n".join(told.groups()))
    assert Settings().budgets == {
        "project:spring": LabelBudget(Decimal(20)),
        "team:web": LabelBudget(Decimal(20), "month"),
    }


def test_an_impossible_token_in_a_file_is_not_shown() -> None:
    Path("prefect.toml").write_text("[integrations.veogen]\napi_token = 123456789\n")
    with pytest.raises(ConfigurationError, match=re.escape("api_token in prefect.toml=(hidden)")) as caught:
        Settings()
    assert "123456789" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["[integrations\n", "a = 1\na = 2\n", "[integrations]\nveogen = 5\n", "integrations = 5\n"]
)
def test_a_file_that_can_not_be_read_is_refused_for_a_cap_may_be_in_it(text: str) -> None:
    Path("prefect.toml").write_text(text)
    with pytest.raises(ConfigurationError, match=r"prefect\.toml"):
        Settings()


@pytest.mark.parametrize(
    ("file", "table"),
    [
        ("prefect.toml", "integrations.prefect_veogen"),
        ("prefect.toml", "integrations.prefect-veogen"),
        ("prefect.toml", "integrations.Veogen"),
        ("prefect.toml", "integration.veogen"),
        ("prefect.toml", "Intergrations.veogen"),
        ("prefect.toml", "veogen"),
        ("prefect.toml", "tool.prefect.integrations.veogen"),
        ("pyproject.toml", "integrations.veogen"),
        ("pyproject.toml", "tool.prefect-veogen"),
        ("pyproject.toml", "tool.prefect.veogen"),
        ("pyproject.toml", "tool.prefect.integrations.prefect_veogen"),
    ],
)
@pytest.mark.parametrize("is_beside_the_right_one", [False, True])
def test_a_table_of_ours_that_is_not_read_is_refused_for_a_cap_in_it_would_be_none(
    file: str, table: str, is_beside_the_right_one: bool
) -> None:
    right = f'[{TABLES[file]}]\nstore = "here"\n' if is_beside_the_right_one else ""
    Path(file).write_text(f"{right}[{table}]\nbudget_usd = 5\n")
    told = f"[{table}] in {file} is not read"
    with pytest.raises(ConfigurationError, match=rf"^{re.escape(told)}.*\n.*to \[{re.escape(TABLES[file])}\],"):
        Settings()


@pytest.mark.parametrize("variable", ["VEOGEN_BUDGET_USD", "veogen_budgets", "export VEOGEN_BUDGTES"])
def test_a_cap_in_dotenv_by_a_name_that_is_not_read_there_is_refused(variable: str) -> None:
    Path(".env").write_text(f"{variable}=5\n")
    name = variable.removeprefix("export ")
    told = rf"^{name} in \.env is not read.*\n.*Rename it to PREFECT_INTEGRATIONS_VEOGEN_BUDGET(S|_USD) in \.env"
    with pytest.raises(ConfigurationError, match=told):
        Settings()


def test_a_cap_in_dotenv_that_something_has_loaded_is_a_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".env").write_text("VEOGEN_BUDGET_USD=5\n# VEOGEN_BUDGETS=\n")
    monkeypatch.setenv("VEOGEN_BUDGET_USD", "5")
    assert Settings().budget_usd == 5


@pytest.mark.parametrize("file", [".env", *TABLES])
@pytest.mark.parametrize(
    ("target", "reason"), [("gone", "it is a link to nothing"), ("itself", "symbolic link"), (None, "not a regular")]
)
def test_a_file_that_is_there_and_can_not_be_read_does_not_count_as_absent(
    file: str, target: str | None, reason: str
) -> None:
    if target:
        Path(file).symlink_to(file if target == "itself" else target)
    else:
        os.mkfifo(file)
    with pytest.raises(
        ConfigurationError, match=rf"^{re.escape(file)} in the working directory can't be read.*{reason}"
    ):
        Settings()


def test_a_file_masked_by_a_device_holds_nothing() -> None:
    Path(".env").symlink_to(os.devnull)
    assert Settings().store == "veogen-store"


def test_our_packages_name_in_other_tools_tables_is_none_of_ours() -> None:
    Path("pyproject.toml").write_text(
        '[project]\nname = "prefect-veogen"\n[project.entry-points."prefect.collections"]\nprefect_veogen = "x"\n'
        '[tool.uv.sources.prefect-veogen]\ngit = "x"\n[tool.poetry.dependencies]\nprefect-veogen = {version = "1"}\n'
        '[tool.veogen-tools]\nbudget_usd = 5\n[tool.prefect.integrations.veogen]\nstore = "here"\n'
    )
    assert Settings().store == "here"


def test_what_other_programs_keep_in_these_files_is_none_of_ours(caplog: pytest.LogCaptureFixture) -> None:
    Path(".env").write_text("VEOGEN_STORE=not-read\nBROKEN LINE\n")
    Path("prefect.toml").write_text("[integrations.aws]\nbudget = 5\n[server.api]\nport = 1\n")
    Path("pyproject.toml").mkdir()
    assert Settings().store == "veogen-store"
    assert caplog.text == ""


def test_none_of_this_imports_prefect() -> None:
    Path(".env").write_text("PREFECT_INTEGRATIONS_VEOGEN_STORE=here\n")
    story = "import sys; from prefect_veogen.settings import Settings; Settings(); print('prefect' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", story], capture_output=True, text=True, check=True, timeout=60)
    assert ran.stdout == "False\n"


@pytest.mark.prefect
def test_prefects_own_settings_read_the_same_from_the_same_places(monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.settings.base import PrefectBaseSettings, build_settings_config

    class AsPrefectReads(PrefectBaseSettings):
        model_config = build_settings_config(("integrations", "veogen"))
        store: str = "veogen-store"

    for number, place in reversed([*enumerate(PLACES)][1:]):
        give(monkeypatch, place, f"place-{number}")
        assert Settings().store == AsPrefectReads().store == f"place-{number}"
