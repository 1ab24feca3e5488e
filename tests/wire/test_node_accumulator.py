"""What is stored of a stream is what the accumulator of OpenAI's SDK for Node gives, or more.

Run where the SDK is installed: `npm ci --prefix tests/node`.
"""

import json
import random
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.wire.test_chat_reply import data_of
from tests.wire.test_sdk_accumulator import ODD, RECORDED, USAGE, assert_holds, begun, call, seen_by_us, token

JSON = dict[str, Any]
FOLDER = Path(__file__).parent.parent / "node"
NODE = shutil.which("node")
SEED, RANDOM_STREAMS = 17, 200
TEXTS = ("", "a", "{", '"}', "你", "😀", "\n")

pytestmark = pytest.mark.skipif(
    NODE is None or not (FOLDER / "node_modules").is_dir(), reason="Node or its packages are missing"
)


def seen_by_node(streams: list[list[JSON]]) -> list[JSON]:
    """What the SDK has accumulated of each, in the shape of `seen_by_us`."""
    assert NODE is not None
    command = [NODE, str(FOLDER / "accumulate.mjs")]
    done = subprocess.run(command, input=json.dumps(streams), capture_output=True, text=True, check=True, timeout=120)
    return [
        {
            "choices": [
                {
                    **{key: value for key, value in choice["message"].items() if key != "parsed"},
                    "finish_reason": choice["finish_reason"],
                    "logprobs": choice.get("logprobs"),
                }
                for choice in snapshot["choices"]
                if choice is not None
            ],
            "usage": snapshot.get("usage"),
        }
        for snapshot in json.loads(done.stdout)
    ]


def random_stream(dice: random.Random) -> list[JSON]:
    """Choices by turns, with texts, refusals, calls and logprobs."""
    count, calls = dice.randint(1, 2), [0, 0]
    deltas: list[JSON] = [
        {"index": index, "delta": {"role": "assistant", "content": ""}, "finish_reason": None} for index in range(count)
    ]
    for _ in range(dice.randint(0, 12)):
        index, text = dice.randrange(count), dice.choice(TEXTS)
        delta: JSON = {dice.choice(("content", "refusal")): text}
        kind = dice.choice(("text", "begin", "go on"))
        if kind == "begin":
            delta, calls[index] = {"tool_calls": [begun(calls[index], arguments=text)]}, calls[index] + 1
        elif kind == "go on" and calls[index]:
            delta = {"tool_calls": [call(dice.randrange(calls[index]), arguments=text)]}
        beside = {"logprobs": {"content": [token(text)], "refusal": None}} if dice.random() < 0.3 else {}
        deltas.append({"index": index, "delta": delta, "finish_reason": None, **beside})
    deltas += [{"index": index, "delta": {}, "finish_reason": "stop"} for index in range(count)]
    base = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    return [*({**base, "choices": [delta]} for delta in deltas), {**base, "choices": [], "usage": USAGE}]


def assert_same(streams: dict[str, list[JSON]]) -> None:
    for (name, chunks), theirs in zip(streams.items(), seen_by_node(list(streams.values())), strict=True):
        assert_holds(seen_by_us(chunks), theirs, name)


def test_recorded_streams() -> None:
    parsed = {name: [json.loads(data) for data in data_of(name) if data != b"[DONE]"] for name in RECORDED}
    assert_same({name: [chunk for chunk in chunks if "choices" in chunk] for name, chunks in parsed.items()})


# Of a name in pieces this SDK keeps the last one, of several usages the first, and arguments that never came are an
# empty text to it.
LEFT_OUT = ("a name in pieces", "a call without arguments", "usage in every chunk")


def test_odd_streams() -> None:
    assert_same({name: chunks for name, chunks in ODD.items() if name not in LEFT_OUT})


def test_random_streams() -> None:
    dice = random.Random(SEED)
    assert_same({f"stream {number}": random_stream(dice) for number in range(RANDOM_STREAMS)})
