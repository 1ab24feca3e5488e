"""Identifiers are UUIDv7 and grow; differences of timestamps are exact, also across a minute or a year."""

import uuid
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from proxy.ids import made_at, milliseconds_between, uuid7

moments = st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1)).map(lambda each: each.replace(tzinfo=UTC))


def written(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


@given(moments, st.integers(-200_000, 200_000))
def test_the_difference_of_two_timestamps_is_exact(moment: datetime, milliseconds: int) -> None:
    earlier = moment.replace(microsecond=moment.microsecond // 1000 * 1000)
    later = earlier + timedelta(milliseconds=milliseconds)
    assert milliseconds_between(written(earlier), written(later)) == milliseconds


def test_a_timestamp_in_another_notation_is_read_as_well() -> None:
    assert milliseconds_between("2026-11-22T09:58:54.123Z", "2026-11-22T09:58:54.1235Z") == 0.5
    assert milliseconds_between("2026-11-22T09:58:54+00:00", "2026-11-22T10:58:55+01:00") == 1000


def test_identifiers_are_of_version_7_and_grow() -> None:
    ids = [uuid7() for _ in range(10_000)]
    assert ids == sorted(set(ids))
    assert {(uuid.UUID(each).version, uuid.UUID(each).variant) for each in ids} == {(7, uuid.RFC_4122)}
    assert made_at(ids[0]) is not None
