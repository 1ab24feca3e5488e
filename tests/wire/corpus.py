"""Requests and replies of every dialect with all that they can hold, known and unknown; and random ones."""

from typing import Any

from hypothesis import strategies as st

JSON = dict[str, Any]

PIXEL = "data:image/png;base64,iVBORw0KGgo="

ITEMS: list[Any] = [
    {"role": "developer", "content": "Be brief."},
    {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "What is this?"}]},
    {
        "type": "message",
        "role": "user",
        "content": [
            {"type": "input_text", "text": "Look:"},
            {"type": "input_image", "image_url": PIXEL, "detail": "high"},
            {"type": "input_image", "file_id": "file_1", "detail": "auto"},
            {"type": "input_file", "filename": "a.pdf", "file_data": "data:application/pdf;base64,AAAA"},
            {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
            {"type": "input_hologram", "beam": [1, 2.0, None, True]},
        ],
        "id": "msg_in",
        "status": "completed",
    },
    {
        "type": "reasoning",
        "id": "rs_1",
        "summary": [{"type": "summary_text", "text": "thinking"}],
        "content": [{"type": "reasoning_text", "text": "thinking hard"}],
        "encrypted_content": "gAAAA==",
    },
    {
        "type": "message",
        "id": "msg_1",
        "role": "assistant",
        "status": "completed",
        "phase": "commentary",
        "content": [
            {
                "type": "output_text",
                "text": "Let me look.",
                "annotations": [{"type": "url_citation", "url": "http://example.test", "start_index": 0}],
                "logprobs": [],
            }
        ],
    },
    {
        "type": "function_call",
        "id": "fc_1",
        "call_id": "call_1",
        "name": "look",
        "arguments": '{"at": "it"}',
        "status": "completed",
    },
    {
        "type": "custom_tool_call",
        "id": "ctc_1",
        "call_id": "call_2",
        "name": "shell",
        "input": "ls",
        "status": "completed",
    },
    {"type": "function_call", "call_id": "call_3", "name": "bare", "arguments": ""},
    {"type": "function_call_output", "call_id": "call_1", "output": "a cat"},
    {"type": "custom_tool_call_output", "call_id": "call_2", "output": "a.txt", "id": "cto_1"},
    {
        "type": "function_call_output",
        "call_id": "call_3",
        "output": [{"type": "input_text", "text": "seen"}, {"type": "input_image", "image_url": PIXEL}],
        "status": "incomplete",
    },
    {
        "type": "local_shell_call",
        "id": "lsh_1",
        "call_id": "call_4",
        "status": "completed",
        "action": {"type": "exec", "command": ["ls"], "env": {}},
    },
    {"type": "local_shell_call_output", "call_id": "call_4", "output": "nothing", "id": "lsho_1"},
    {"type": "compaction", "id": "cmp_1", "encrypted_content": "gBBBB=="},
    {"type": "mcp_list_tools", "id": "mcpl_1", "server_label": "s", "tools": [{"name": "t", "input_schema": {}}]},
    {"type": "item_reference", "id": "msg_elsewhere"},
    {"type": "teleport", "to": {"x": 1}},
    {"type": "message", "role": "user", "content": []},
    {"role": "user", "content": "plain"},
    "no object at all",
    17,
    {"type": "message", "role": "assistant", "content": [{"type": "refusal", "refusal": "I will not."}], "id": "msg_r"},
    {"role": "assistant", "content": "an easy one"},
    {
        "type": "message",
        "role": "assistant",
        "id": "msg_2",
        "content": [
            {"type": "output_text", "text": "one", "annotations": []},
            {"type": "output_text", "text": "two", "annotations": []},
        ],
    },
    {"type": "reasoning", "id": "rs_2", "summary": [], "content": None, "encrypted_content": "gCCCC=="},
    {"type": "function_call", "call_id": None, "name": None, "arguments": {"no": "text"}},
    {"type": "message", "role": 5, "content": "odd role"},
    {"role": "user", "content": "\ud83d alone"},
]

SYSTEM: list[Any] = [
    {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1; cch=1a2b3;"},
    {"type": "text", "text": "You are a tester.", "cache_control": {"type": "ephemeral"}},
    {"type": "text", "text": "Be exact.", "citations": None},
]

MESSAGES: list[Any] = [
    {"role": "user", "content": "plain"},
    {"role": "assistant", "content": "plain too"},
    {"role": "system", "content": "a system message within"},
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "<system-reminder>now</system-reminder>"},
            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}},
            {"type": "image", "source": {"type": "url", "url": "http://example.test/a.png"}},
            {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "d"}, "title": "t"},
            {"type": "text", "text": "What is this?", "cache_control": {"type": "ephemeral", "ttl": "1h"}},
        ],
    },
    {
        "role": "assistant",
        "content": [
            {"type": "thinking", "thinking": "hm", "signature": "c2ln"},
            {"type": "redacted_thinking", "data": "cmVk"},
            {"type": "text", "text": "Let me look.", "citations": [{"type": "char_location", "start_char_index": 0}]},
            {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {"at": "it", "n": 1.0}},
            {"type": "text", "text": "And again."},
            {"type": "tool_use", "id": "toolu_2", "name": "look", "input": {}},
            {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {"query": "q"}},
            {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": [{"type": "web_search_result"}]},
        ],
    },
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "before the results"},
            {"type": "tool_result", "tool_use_id": "toolu_1", "content": "a cat", "is_error": False},
            {"type": "text", "text": "between"},
            {
                "type": "tool_result",
                "tool_use_id": "toolu_2",
                "is_error": True,
                "content": [
                    {"type": "text", "text": "broken", "cache_control": {"type": "ephemeral"}},
                    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}},
                ],
                "cache_control": {"type": "ephemeral"},
            },
        ],
    },
    {"role": "assistant", "content": []},
    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_3"}]},
    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_4", "content": []}]},
    {"role": "user", "content": "a message of its own"},
    {"role": "user", "content": [{"type": "teleport", "to": "x"}, "no object", 3]},
    "no object",
    {"role": "user"},
    {"role": "assistant", "content": None, "extra": {"key": 1}},
    {"role": "assistant", "content": [{"type": "tool_use", "id": 5, "name": None, "input": "x"}]},
]

# What a model says, in each dialect.
OUTPUT: list[JSON] = [
    {
        "type": "reasoning",
        "id": "rs_out",
        "summary": [{"type": "summary_text", "text": "thinking of"}, {"type": "summary_text", "text": "both"}],
        "content": [{"type": "reasoning_text", "text": "thinking hard"}],
        "encrypted_content": "gAAAA==",
    },
    {
        "type": "message",
        "id": "msg_out",
        "role": "assistant",
        "status": "completed",
        "phase": "commentary",
        "content": [
            {
                "type": "output_text",
                "text": "It is response.completed.",
                "annotations": [{"type": "url_citation", "url": "http://example.test"}, {"type": "file_path"}],
                "logprobs": [{"token": "It", "logprob": -0.5, "bytes": [73, 116], "top_logprobs": []}],
            },
            {"type": "refusal", "refusal": "I will not \U0001f600."},
            {"type": "output_hologram", "beam": [1, 2.0, None]},
        ],
    },
    {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"type": "search", "query": "q"}},
    {"type": "file_search_call", "id": "fs_1", "status": "completed", "queries": ["q"], "results": None},
    {"type": "code_interpreter_call", "id": "ci_1", "status": "completed", "code": "1 + 1", "container_id": "c"},
    {"type": "image_generation_call", "id": "ig_1", "status": "completed", "result": "iVBORw0KGgo="},
    {"type": "computer_call", "id": "cu_1", "call_id": "call_u", "status": "completed", "action": {"type": "wait"}},
    {"type": "mcp_list_tools", "id": "mcpl_out", "server_label": "s", "tools": []},
    {"type": "mcp_call", "id": "mcp_1", "server_label": "s", "name": "t", "arguments": '{"a":1}', "output": "o"},
    {"type": "mcp_approval_request", "id": "mcpr_1", "server_label": "s", "name": "t", "arguments": "{}"},
    {"type": "shell_call", "id": "sh_1", "call_id": "call_s", "status": "completed", "action": {"commands": ["ls"]}},
    {"type": "shell_call_output", "id": "sho_1", "call_id": "call_s", "output": [{"stdout": "a"}]},
    {"type": "local_shell_call", "id": "lsh_out", "call_id": "call_l", "status": "completed", "action": {}},
    {"type": "apply_patch_call", "id": "ap_1", "call_id": "call_a", "status": "completed", "operation": {"diff": "+"}},
    {"type": "compaction", "id": "cmp_out", "encrypted_content": "gBBBB=="},
    {"type": "teleport", "id": "tp_1", "to": {"x": 1}},
    {
        "type": "custom_tool_call",
        "id": "ctc_out",
        "call_id": "call_c",
        "name": "sh",
        "input": 'rm -f "x"',
        "status": "completed",
    },
    {"type": "message", "id": "msg_empty", "role": "assistant", "status": "completed", "content": []},
    {
        "type": "function_call",
        "id": "fc_out",
        "call_id": "call_f",
        "name": "look",
        "arguments": '{"at": "\u65e5\u672c", "n": 1.0}',
        "status": "completed",
    },
    {
        "type": "function_call",
        "id": "fc_2",
        "call_id": "call_f",
        "name": "look",
        "arguments": "",
        "status": "completed",
    },
]

BLOCKS: list[JSON] = [
    {"type": "thinking", "thinking": "thinking hard", "signature": "c2ln"},
    {"type": "redacted_thinking", "data": "cmVk"},
    {"type": "text", "text": "message_stop"},
    {"type": "text", "text": "I look \U0001f600.", "citations": [{"type": "char_location"}, {"type": "page_location"}]},
    {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {"query": "q"}},
    {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": [{"type": "web_search_result"}]},
    {"type": "mcp_tool_use", "id": "mcptoolu_1", "name": "t", "server_name": "s", "input": {"a": [1, None]}},
    {"type": "mcp_tool_result", "tool_use_id": "mcptoolu_1", "is_error": True, "content": []},
    {"type": "code_execution_tool_result", "tool_use_id": "srvtoolu_1", "content": {"return_code": 0}},
    {"type": "container_upload", "file_id": "file_1"},
    {"type": "compaction", "content": "what was said", "encrypted_content": None},
    {"type": "teleport", "to": {"x": 1}},
    {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {"at": "\u65e5\u672c", "n": 1.0}},
    {"type": "text", "text": "And again."},
    {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {}},
]

_text = st.text(alphabet="ab \n", max_size=5)
_json = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats(allow_nan=False, allow_infinity=False) | _text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_text, inner, max_size=3),
    max_leaves=6,
)
_keys = st.dictionaries(
    st.sampled_from(["id", "status", "content", "text", "call_id", "name", "role", "odd"]), _json, max_size=3
)


def _mutated(values: list[Any]) -> st.SearchStrategy[Any]:
    """One of the corpus, or one with other keys."""
    objects = [value for value in values if isinstance(value, dict)]
    changed = st.builds(lambda value, keys: {**value, **keys}, st.sampled_from(objects), _keys)
    return st.sampled_from(values) | changed | _json


item_lists = st.lists(_mutated(ITEMS), max_size=8)
message_lists = st.lists(_mutated(MESSAGES), max_size=6)
