"""When an upstream leaves, and when it returns."""

from proxy.upstream.health import Health


def known() -> Health:
    health = Health()
    health.answered()
    return health


def is_in(health: Health) -> bool:
    """For mypy, which else takes the first answer for the last."""
    return health.is_in


def test_one_failure_is_forgiven_and_the_second_is_not() -> None:
    health = known()
    health.failed("refused")
    assert is_in(health)
    health.failed("refused")
    assert not is_in(health)
    assert health.reason == "refused"


def test_a_failure_between_good_probes_does_not_add_up() -> None:
    health = known()
    for _ in range(5):
        health.failed("refused")
        health.answered()
    assert is_in(health)


def test_it_returns_after_two_good_probes() -> None:
    health = known()
    health.failed("refused")
    health.failed("refused")
    health.answered()
    assert not is_in(health)
    health.answered()
    assert is_in(health)
    assert health.reason is None


def test_the_first_probe_decides_alone() -> None:
    health = Health()
    health.failed("refused")
    assert not is_in(health)
    assert is_in(known())


def test_open_requests_that_receive_nothing_make_it_leave_though_probes_are_answered() -> None:
    health = known()
    for second in range(0, 30, 5):
        health.watch_silence(now=second, open_count=3, received=7)
        health.answered()
    assert not is_in(health)
    assert health.reason == "open requests receive nothing"
    health.watch_silence(now=31, open_count=3, received=8)
    assert is_in(health)


def test_an_idle_upstream_is_not_silent() -> None:
    health = known()
    for second in range(0, 100, 5):
        health.watch_silence(now=second, open_count=0, received=7)
    assert is_in(health)
