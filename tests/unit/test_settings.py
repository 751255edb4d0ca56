"""Settings come from the environment; what is wrong is reported by name, and never with the value."""

import pytest

from app.settings import Settings, SettingsError, load_settings

KEY = "x9tVhH1mZ4nqGJm8yW5hYk3q0r2s6u8vBdEfGjKlMnQ="


@pytest.fixture(autouse=True)
def _clean(clean_environment):
    return clean_environment


def test_defaults_are_those_of_the_documentation():
    settings = load_settings()
    assert settings.database_url is None
    assert settings.app_url == "http://localhost:8000"
    assert settings.calendar_sync_interval_seconds == 1800
    assert (settings.calendar_sync_window_past_days, settings.calendar_sync_window_future_days) == (1, 28)
    assert settings.calendar_push_debounce_seconds == 2
    assert settings.webhook_timeout_seconds == 10
    assert settings.webhook_retry_schedule_seconds == (
        5,
        300,
        1800,
        7200,
        18000,
        36000,
        50400,
        72000,
        86400,
    )
    assert settings.allow_private_network_targets is False
    assert settings.feature_messages_integration is False
    assert settings.bot_launch_lead_seconds == 300
    assert settings.bot_runner_platforms == {"zoom", "google_meet", "teams"}
    assert settings.api_posts_per_minute == 3000


def test_the_environment_wins_over_the_env_file(monkeypatch, tmp_path):
    (tmp_path / ".env").write_text("LOG_LEVEL=ERROR\nWEBHOOK_TIMEOUT_SECONDS=3\n")
    monkeypatch.setenv("LOG_LEVEL", "WARNING")
    settings = load_settings()
    assert settings.log_level == "WARNING"
    assert settings.webhook_timeout_seconds == 3


def test_platforms_are_a_list_in_any_case(monkeypatch):
    monkeypatch.setenv("BOT_RUNNER_PLATFORMS", " Zoom, visio,")
    assert load_settings().bot_runner_platforms == {"zoom", "visio"}


def test_an_empty_variable_counts_as_not_set(monkeypatch):
    monkeypatch.setenv("DATABASE_URL", "")
    monkeypatch.setenv("CALENDAR_SYNC_INTERVAL_SECONDS", "")
    settings = load_settings()
    assert settings.database_url is None
    assert settings.calendar_sync_interval_seconds == 1800


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("DATABASE_URL", "mysql://user:hunter2@host/db", "postgresql://user:password@host/database"),
        ("REDIS_URL", "http://hunter2", "redis://host:6379/0"),
        ("APP_URL", "hunter2", "URL"),
        ("APP_URL", "https://ada:hunter2@calendars.example.org", "no user name and no password"),
        ("CREDENTIALS_ENCRYPTION_KEYS", f"{KEY},hunter2", "key 2 is not a Fernet key"),
        ("CALENDAR_SYNC_INTERVAL_SECONDS", "hunter2", "number"),
        ("CALENDAR_SYNC_INTERVAL_SECONDS", "0", "greater than 0"),
        ("CALENDAR_SYNC_WINDOW_FUTURE_DAYS", "-1", "greater than or equal to 1"),
        ("ENVIRONMENT", "hunter2", "'development' or 'production'"),
        ("WEBHOOK_RETRY_SCHEDULE_SECONDS", "5,hunter2", "separated by commas"),
        ("WEBHOOK_RETRY_SCHEDULE_SECONDS", "5,-1", "between 0 and"),
        ("MESSAGES_API_URL", "https://messages.example/api/v1.0/", "must NOT end with /api/v1.0/"),
        ("MESSAGES_CHANNEL_ID", "hunter2", "UUID"),
        ("MESSAGES_API_KEY", "hunter2 ", "without spaces"),
        ("ALLOW_PRIVATE_NETWORK_TARGETS", "hunter2", "boolean"),
        ("BOT_RUNNER_PLATFORMS", "zoom,hunter2", "zoom, google_meet, teams, webex"),
        ("BOT_RUNNER_PLATFORMS", ",", "zoom, google_meet, teams, webex"),
        ("API_POSTS_PER_MINUTE", "-1", "greater than or equal to 0"),
    ],
)
def test_a_wrong_value_is_one_line_that_names_the_variable_and_not_the_value(monkeypatch, name, value, says):
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    text = str(caught.value)
    assert text.startswith(f"{name}: ")
    assert says in text
    assert "hunter2" not in text
    assert "\n" not in text
    # Nor by way of the chain that a traceback would print.
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_every_wrong_variable_has_its_own_line(monkeypatch):
    monkeypatch.setenv("DATABASE_URL", "nonsense")
    monkeypatch.setenv("LOG_LEVEL", "LOUD")
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert [line.partition(":")[0] for line in str(caught.value).splitlines()] == [
        "DATABASE_URL",
        "LOG_LEVEL",
    ]


def test_messages_needs_its_address_key_and_channel(monkeypatch):
    monkeypatch.setenv("FEATURE_MESSAGES_INTEGRATION", "True")
    monkeypatch.setenv("MESSAGES_API_URL", "https://messages.example")
    with pytest.raises(SettingsError, match="set MESSAGES_API_KEY and MESSAGES_CHANNEL_ID too"):
        load_settings()


def test_smtp_needs_a_sender(monkeypatch):
    monkeypatch.setenv("SMTP_URL", "smtp://mail.example:587?starttls=true")
    with pytest.raises(SettingsError, match="EMAIL_FROM"):
        load_settings()
    monkeypatch.setenv("EMAIL_FROM", "Calendars <calendars@example.org>")
    assert load_settings().smtp_sender == ("calendars@example.org", "Calendars")
    monkeypatch.setenv("EMAIL_FROM", "calendars@example.org")
    assert load_settings().smtp_sender == ("calendars@example.org", None)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SMTP_URL", "mail.example:587"),
        ("SMTP_URL", "http://hunter2@mail.example"),
        ("SMTP_URL", "smtp://:hunter2@"),
        ("SMTP_URL", "smtp://hunter2@mail.example:many"),
        ("EMAIL_FROM", "Calendars"),
        ("EMAIL_FROM", "a@example.org, b@example.org"),
        ("EMAIL_FROM", "Calendars <>"),
    ],
)
def test_a_way_out_for_mails_that_cannot_work_stops_the_start(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=name) as caught:
        load_settings()
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("app_url", "enabled", "expected"),
    [
        ("http://localhost:8000", None, False),
        ("https://calbridge.example", None, True),
        ("https://calbridge.example", "False", False),
        ("http://localhost:8000", "True", True),
    ],
)
def test_push_is_on_where_the_app_is_reached_by_https(monkeypatch, app_url, enabled, expected):
    monkeypatch.setenv("APP_URL", app_url)
    if enabled is not None:
        monkeypatch.setenv("CALENDAR_PUSH_ENABLED", enabled)
    assert load_settings().push_enabled is expected


def test_the_app_url_has_no_final_slash(monkeypatch):
    monkeypatch.setenv("APP_URL", "https://calbridge.example/")
    assert load_settings().app_url == "https://calbridge.example"


def test_what_is_needed_and_not_set_says_how_to_get_it():
    settings = load_settings()
    with pytest.raises(SettingsError, match=r"DATABASE_URL is not set.*calbridge up"):
        settings.required_database_url()
    with pytest.raises(SettingsError, match=r"REDIS_URL is not set.*calbridge up"):
        settings.required_redis_url()
    with pytest.raises(SettingsError, match=r"CREDENTIALS_ENCRYPTION_KEYS is not set.*generate_key"):
        settings.required_fernet_keys()


def test_secrets_are_not_in_the_repr():
    settings = Settings(
        database_url="postgresql://user:hunter2@host/db", redis_url="redis://:hunter2@host", smtp_url=None
    )
    assert "hunter2" not in repr(settings)
