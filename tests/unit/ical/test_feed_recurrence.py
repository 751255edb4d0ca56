"""Recurring events of a feed: rules, overrides, exceptions and their limits."""

from datetime import UTC, datetime, timedelta

import icalendar
import pytest
import recurring_ical_events
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from app.events.data import Window
from app.ical import feed as feed_module
from app.ical.errors import CalendarUnreadable
from app.ical.feed import Feed
from app.ical.recurrence import Rule, RuleRefused
from tests.unit.ical.feeds import FILES, WINDOW, calendar, read, read_file, starts, utc, vevent


def test_rdates_add_instances_and_periods_have_their_own_length():
    events = read_file("rdate_period.ics")
    assert {name: (event.start_time, event.end_time) for name, event in events.items()} == {
        "rdate_20261120T080000Z": (utc(11, 20, 8), utc(11, 20, 9)),
        "rdate_20261124T080000Z": (utc(11, 24, 8), utc(11, 24, 9)),
        "rdate_20261126T130000Z": (utc(11, 26, 13), utc(11, 26, 14)),
        "rdate_20261201T080000Z": (utc(12, 1, 8), utc(12, 1, 11)),
        "rdate_20261202T080000Z": (utc(12, 2, 8), utc(12, 2, 8, 15)),
    }


def test_exdates_of_every_form_remove_instances():
    assert set(read_file("exdate_lists.ics")) == {
        "ex_20261123T080000Z",
        "ex_20261130T080000Z",
        "ex_20261201T080000Z",
        "ex_20261202T080000Z",
    }


def test_overrides_move_instances_into_and_out_of_the_window():
    events = read_file("overrides_across_the_window.ics")
    assert {name: (event.start_time, event.name) for name, event in events.items()} == {
        "moves_20260903T070000Z": (utc(11, 24, 14), "Moved in from the past"),
        "moves_20270107T080000Z": (utc(11, 25, 14), "Moved in from the future"),
        "moves_20261119T080000Z": (utc(11, 19, 8), "Thursdays"),
        "moves_20261203T080000Z": (utc(12, 3, 10), "Named by its day"),
        "moves_20261210T080000Z": (utc(12, 10, 11), "Named by a floating time"),
        "moves_20261217T080000Z": (utc(12, 17, 8), "Thursdays"),
        "alone_20261124T080000Z": (utc(11, 24, 9), "Invited to one instance only"),
    }
    assert events["moves_20260903T070000Z"].original_start_time == utc(9, 3, 7)


def test_this_and_future_changes_what_follows_and_keeps_the_slots():
    events = read_file("this_and_future.ics")
    assert {name: (event.start_time, event.end_time, event.name) for name, event in events.items()} == {
        "range_20261123T080000Z": (utc(11, 23, 8), utc(11, 23, 9), "Before"),
        "range_20261124T080000Z": (utc(11, 24, 8), utc(11, 24, 9), "Before"),
        "range_20261125T080000Z": (utc(11, 25, 13), utc(11, 25, 15), "After"),
        "range_20261126T080000Z": (utc(11, 26, 13), utc(11, 26, 15), "After"),
        "range_20261127T080000Z": (utc(11, 27, 7), utc(11, 27, 7, 30), "Only this one"),
        "range_20261128T080000Z": (utc(11, 28, 13), utc(11, 28, 15), "After"),
    }
    assert events["range_20261128T080000Z"].original_start_time == utc(11, 28, 8)


def test_this_and_future_can_move_instances_into_the_window():
    body = calendar(
        vevent("a", "DTSTART:20260101T090000Z", "RRULE:FREQ=DAILY;COUNT=3"),
        vevent("a", "RECURRENCE-ID;RANGE=THISANDFUTURE:20260102T090000Z", "DTSTART:20261124T090000Z"),
    )
    assert [(event.platform_uuid, event.start_time) for event in read(body)] == [
        ("a_20260102T090000Z", utc(11, 24, 9)),
        ("a_20260103T090000Z", utc(11, 25, 9)),
    ]


def test_a_cancelled_rest_of_a_series_is_left_out():
    body = calendar(
        vevent("a", "DTSTART:20261123T090000Z", "RRULE:FREQ=DAILY;COUNT=3"),
        vevent(
            "a",
            "RECURRENCE-ID;RANGE=THISANDFUTURE:20261124T090000Z",
            "DTSTART:20261124T090000Z",
            "STATUS:CANCELLED",
        ),
    )
    assert [event.platform_uuid for event in read(body)] == ["a_20261123T090000Z"]


def test_a_change_of_an_unknown_instance_does_not_replace_the_series():
    body = calendar(
        vevent("a", "DTSTART:20261123T090000Z", "RRULE:FREQ=DAILY;COUNT=2"),
        vevent("a", "RECURRENCE-ID:yesterday", "DTSTART:today", "SEQUENCE:5"),
        vevent("a", "RECURRENCE-ID:yesterday", "DTSTART:20261124T120000Z", "SEQUENCE:5"),
    )
    assert sorted(event.platform_uuid for event in read(body)) == [
        "a_20261123T090000Z",
        "a_20261124T090000Z",
        "a_20261124T120000Z",
    ]


def test_what_is_cancelled_is_left_out():
    assert set(read_file("cancelled.ics")) == {"partly_20261123T090000Z", "partly_20261125T090000Z"}


def test_endless_series_give_what_is_in_the_window():
    events = read_file("endless.ics")
    daily = [event.start_time for name, event in events.items() if name.startswith("daily_")]
    assert len(daily) == 29
    assert daily[0] == utc(11, 19, 8)
    assert events["yearly_20261124"].is_all_day
    assert sum(name.startswith("minus_") for name in events) == 25


@pytest.mark.processor_time
def test_absurd_rules_neither_hang_nor_hide_the_others():
    with capture_logs() as logs:
        events = read_file("absurd_rules.ics")
    assert sum(name.startswith("secondly_") for name in events) == feed_module.MAX_INSTANCES_OF_SERIES
    assert starts({name: event for name, event in events.items() if not name.startswith("secondly_")}) == {
        "minutely_20261124T090000Z": utc(11, 24, 9),
        "minutely_20261124T092000Z": utc(11, 24, 9, 20),
        "minutely_20261124T094000Z": utc(11, 24, 9, 40),
        "never_20261124T090000Z": utc(11, 24, 9),
        "february_20261124T090000Z": utc(11, 24, 9),
        "nonsense_20261124T090000Z": utc(11, 24, 9),
        "huge_20261124T090000Z": utc(11, 24, 9),
        "good": utc(11, 24, 9),
    }
    assert {(entry["event"], entry["uid"]) for entry in logs if "uid" in entry} == {
        ("ics.series_with_too_many_instances", "secondly"),
        ("ics.rule_refused", "never"),
        ("ics.rule_refused", "nonsense"),
        ("ics.rule_refused", "allseconds"),
        ("ics.rule_refused", "huge"),
    }


def test_a_feed_that_takes_too_long_is_unavailable(monkeypatch):
    monkeypatch.setattr(feed_module, "MAX_CPU_SECONDS", 0.0)
    with pytest.raises(CalendarUnreadable) as caught:
        read((FILES / "endless.ics").read_bytes())
    assert caught.value.code == "feed_too_complex"


def test_more_events_than_allowed_are_cut_and_logged(monkeypatch):
    monkeypatch.setattr(feed_module, "MAX_INSTANCES", 10)
    with capture_logs() as logs:
        assert len(read_file("endless.ics")) == 10
    assert "ics.too_many_events" in [entry["event"] for entry in logs]


def daily(uid, hour, *more):
    return ["BEGIN:VEVENT", f"UID:{uid}", f"DTSTART:20261101T{hour:02d}0000Z", *more, "END:VEVENT"]


def selected(*events, days=730.4):
    lines = ["BEGIN:VCALENDAR", "VERSION:2.0", "PRODID:test", *(line for event in events for line in event)]
    feed = Feed("\r\n".join([*lines, "END:VCALENDAR", ""]).encode())
    begins = datetime(2026, 11, 20, tzinfo=UTC)
    return feed.select(Window(begins, begins + timedelta(days=days))), feed.complete_until


def test_a_window_of_years_holds_every_instance_of_daily_and_hourly_series():
    series = [daily(f"s{n}", n, "RRULE:FREQ=DAILY") for n in range(20)]
    instances, complete_until = selected(*series, daily("hourly", 0, "RRULE:FREQ=HOURLY"))
    assert (len(instances), complete_until) == (10 * 731 + 10 * 730 + 24 * 730 + 10, None)


def test_of_too_many_instances_the_first_to_start_are_kept(monkeypatch):
    monkeypatch.setattr(feed_module, "MAX_INSTANCES", 100)
    series = [daily(f"s{n}", n, "RRULE:FREQ=DAILY") for n in range(24)]
    late = daily("late", 1, "RDATE:20270301T000000Z")
    instances, complete_until = selected(*series, late, days=90)
    assert complete_until == datetime(2026, 11, 24, 4, tzinfo=UTC)
    assert len(instances) == 100
    assert max(instance.start for instance in instances) < complete_until
    # Of one moment, some are kept.
    same = [daily(f"s{n}", 9, "RRULE:FREQ=DAILY;COUNT=30") for n in range(101)]
    instances, complete_until = selected(*same)
    assert (len(instances), complete_until) == (100, datetime(2026, 11, 20, 9, tzinfo=UTC))


def test_of_very_many_series_the_window_is_expanded_in_growing_parts(monkeypatch):
    """They would take too long in the whole window. What is left out is the same as in one pass."""
    series = [daily(f"s{n}", n % 24, "RRULE:FREQ=DAILY") for n in range(200)]
    yearly = [daily(f"y{n}", 1, "RRULE:FREQ=YEARLY") for n in range(200)]
    refused = daily("refused", 5, "RRULE:FREQ=NEVER", "RRULE:FREQ=NEVER")
    monkeypatch.setattr(feed_module, "MAX_INSTANCES", 6000)
    with capture_logs() as logs:
        instances, complete_until = selected(*series, *yearly, refused)
    assert complete_until == datetime(2026, 12, 20, tzinfo=UTC)
    assert len(instances) == 6000
    assert [entry["event"] for entry in logs if entry.get("uid") == "refused"] == ["ics.rule_refused"]
    # Few instances, in spite of many series.
    instances, complete_until = selected(*yearly)
    assert (len(instances), complete_until) == (400, None)


def test_how_far_a_series_with_too_many_instances_goes():
    minutely = daily("minutely", 0, "RRULE:FREQ=MINUTELY")
    instances, complete_until = selected(minutely, daily("other", 9, "RRULE:FREQ=DAILY"), days=28)
    begins = datetime(2026, 11, 20, tzinfo=UTC)
    assert complete_until == begins + timedelta(minutes=2000)
    assert len(instances) == 2000 + 28
    # Starts that are not in order say nothing of how far they go.
    two_rules = daily("two", 0, "RRULE:FREQ=MINUTELY", "RRULE:FREQ=DAILY;BYHOUR=4")
    assert selected(two_rules, days=28)[1] == begins


def test_a_file_of_countless_events_is_refused(monkeypatch):
    monkeypatch.setattr(feed_module, "MAX_VEVENTS", 3)
    with pytest.raises(CalendarUnreadable) as caught:
        read(calendar(*[vevent(str(number)) for number in range(4)]))
    assert caught.value.code == "feed_too_large"


@pytest.mark.parametrize(
    "rule",
    [
        "",
        "FREQ=NEVER",
        "FREQ=DAILY;COUNT=many",
        "FREQ=DAILY;INTERVAL=9999999999",
        "FREQ=DAILY;UNTIL=someday",
        "FREQ=DAILY;BYHOUR=25",
        "FREQ=DAILY\nRDATE:20261124T090000Z",
        "FREQ=HOURLY;BYSETPOS=2",
        "FREQ=MINUTELY;BYDAY=MO",
        "FREQ=YEARLY;" + "BYMONTHDAY=1;" * 500,
        "FREQ=DAILY;BYHOUR="
        + ",".join(map(str, range(24)))
        + ";BYSECOND="
        + ",".join(map(str, range(60)))
        + ";COUNT=900000000",
    ],
)
def test_rules_that_cannot_be_followed_are_refused(rule):
    with pytest.raises(RuleRefused):
        list(Rule(rule).walls(datetime(1900, 1, 1), first=datetime(2026, 1, 1), last=datetime(2026, 2, 1)))


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("freq=hourly; interval=6", 5),
        ("FREQ=HOURLY;COUNT=3", 0),
        ("FREQ=DAILY;INTERVAL=0", 2),
        ("FREQ=SECONDLY;INTERVAL=999999999", 0),
        ("FREQ=DAILY;INTERVAL=999999999", 0),
        ("FREQ=YEARLY;INTERVAL=999999999;BYMONTH=6", 0),
    ],
)
def test_rules_with_odd_numbers_are_followed(rule, expected):
    walls = list(
        Rule(rule).walls(datetime(2020, 1, 1), first=datetime(2026, 1, 1), last=datetime(2026, 1, 2))
    )
    assert len(walls) == expected


RULES = st.builds(
    lambda freq, interval, limit, days, month_days: ";".join(
        filter(None, [freq, interval, limit, days, month_days])
    ),
    st.sampled_from(["FREQ=DAILY", "FREQ=WEEKLY", "FREQ=MONTHLY", "FREQ=YEARLY", "FREQ=WEEKLY;WKST=SU"]),
    st.sampled_from(["", "INTERVAL=2", "INTERVAL=3", "INTERVAL=5"]),
    st.sampled_from(["", "", "COUNT=7", "COUNT=40", "UNTIL=20261201T100000Z", "UNTIL=20261124T090000Z"]),
    st.sampled_from(["", "", "BYDAY=MO", "BYDAY=TU,TH", "BYDAY=MO,TU,WE,TH,FR,SA,SU"]),
    st.sampled_from(["", "", "BYMONTHDAY=1,15,-1", "BYMONTH=11,12"]),
)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(
    rule=RULES,
    zone=st.sampled_from(["Europe/Paris", "America/New_York", "Asia/Kolkata"]),
    start=st.datetimes(datetime(2024, 1, 1), datetime(2026, 12, 1)).map(
        lambda at: at.replace(second=0, microsecond=0)
    ),
    minutes=st.integers(1, 3000),
)
def test_series_are_expanded_as_recurring_ical_events_does(rule, zone, start, minutes):
    end = start + timedelta(minutes=minutes)
    text = vevent(
        "a",
        f"DTSTART;TZID={zone}:{start:%Y%m%dT%H%M%S}",
        f"DTEND;TZID={zone}:{end:%Y%m%dT%H%M%S}",
        f"RRULE:{rule}",
        f"EXDATE;TZID={zone}:{start + timedelta(days=7):%Y%m%dT%H%M%S}",
    )
    body = calendar(text)
    expected = {
        (
            occurrence["DTSTART"].dt.astimezone(UTC),
            occurrence["DTEND"].dt.astimezone(UTC),
            occurrence["RECURRENCE-ID"].dt.astimezone(UTC),
        )
        for occurrence in recurring_ical_events.of(icalendar.Calendar.from_ical(body)).between(
            WINDOW.start, WINDOW.end
        )
    }
    found = {(event.start_time, event.end_time, event.original_start_time) for event in read(body)}
    assert found == expected
