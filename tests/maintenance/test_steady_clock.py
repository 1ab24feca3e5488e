import time

import pytest

from proxy.maintenance.steady_clock import SteadyClock


@pytest.mark.parametrize("jump_s", (86_400 * 400, -86_400, 3600))
def test_the_first_look_and_the_one_after_a_jump_trust_nothing(monkeypatch: pytest.MonkeyPatch, jump_s: int) -> None:
    clock, real = SteadyClock(), time.time
    assert [clock.is_steady(), clock.is_steady()] == [False, True]
    monkeypatch.setattr(time, "time", lambda: real() + jump_s)
    assert [clock.is_steady(), clock.is_steady()] == [False, True]
