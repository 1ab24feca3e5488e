"""Growing lists: appended to in place, so that a reply of many citations or logprobs takes linear time."""

import pytest

from proxy.wire.merge import JSON, extend


def test_a_list_grows_in_place() -> None:
    target: JSON = {"logprobs": [1]}
    known = target["logprobs"]
    extend(target, "logprobs", [2, 3])
    assert target["logprobs"] is known
    assert known == [1, 2, 3]


@pytest.mark.parametrize("before", ({}, {"annotations": None}, {"annotations": "none"}))
def test_what_is_no_list_is_replaced(before: JSON) -> None:
    extend(before, "annotations", [1])
    assert before == {"annotations": [1]}
