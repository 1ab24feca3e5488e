"""Which paths reach upstream, for whom: every form of a path, and every way that a server may read it."""

import pytest

from proxy.access.paths import Reach, canonical, reach_of

CONTROLS = (
    *("/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/sleep", "/wake_up", "/is_sleeping", "/reset_prefix_cache"),
    *("/reset_mm_cache", "/reset_encoder_cache", "/collective_rpc", "/pause", "/resume", "/start_profile"),
    *("/stop_profile", "/scale_elastic_ep", "/update_weights", "/inference/v1/generate", "/docs", "/openapi.json"),
    *("/metrics", "/server_info", "/invocations", "/", "/V1/models", "/v1", "/tokenize/", "/v2/embed"),
)
HARMLESS = (
    *(
        "/v1/models",
        "/v1/models/",
        "/v1/models/meta-llama/Llama-3",
        "/v1/models/meta-llama%2FLlama-3",
        "/v1/embeddings",
    ),
    *("/v1/chat/completions/render", "/v1/files/f.1/content", "/v1/models/a%20b", "/v1/models/%E6%A8%A1%E5%9E%8B"),
    *("/v1/models/a:b@c", "/v1/x.y/..z", "/v1/", "/tokenize", "/version", "/v2/rerank"),
)
# What makes one path of another for some server. `{}` is the path without its leading slash.
DISGUISES = (
    *(
        "//{}",
        "/./{}",
        "/../{}",
        "/.//{}",
        "/%2e/{}",
        "/%2E%2e/{}",
        "/.%2e/{}",
        "/%2F{}",
        "/%2f%2f{}",
        "/%5c{}",
        "/\\{}",
    ),
    *("/x/..;/{}", "/..;/{}", "/;/{}", "/;a=b/{}", "/%3b/{}", "/x/../{}", "/x/%2e%2e/{}", "/x/..%2f{}", "/x%2f..%2f{}"),
    *("/x/%252e%252e/{}", "/%252f{}", "/%25%32%66{}", "/%2525{}", "/x/..%5c{}", "/x/..%255c{}", "/%c0%af{}"),
    *("/%c0%ae%c0%ae/{}", "/%u002e%u002e/{}", "/%ef%bc%8f{}", "/%ef%bc%8e%ef%bc%8e/{}", "/%e2%80%a6/{}"),
    *("/x/.../{}", "/x/.%20./{}", "/%20/{}", "/%09{}", "/%0a{}", "/%00/{}", "/%e2%80%8b{}", "/x%00/../{}", "/%7f{}"),
)
TRAILERS = (
    *("", "/", "?", "%0a", "%0d%0a", "%0a/x", "%00", "%20", ".", "..", "/.", "/..", "/..;", ";", ";x", ";.json", "//"),
    *(
        "%2f",
        "%2F",
        "%2f%2f",
        "%5c",
        "%3f",
        "%23",
        "%3fx",
        "#",
        "%",
        "%2",
        "%zz",
        "%25",
        "%252f",
        "/x",
        "/x/y",
        ".json",
    ),
    *("~", "_x", "%c2%a0", "%e2%80%8b", "%ef%bc%8f", "::$DATA", "%", "\\"),
)


def _raw(text: str) -> bytes:
    return text.encode("latin-1").partition(b"?")[0]


@pytest.mark.parametrize("path", HARMLESS)
def test_an_ordinary_path_is_for_anyone(path: str) -> None:
    assert reach_of(_raw(path)) is Reach.ANYONE


@pytest.mark.parametrize("path", CONTROLS)
def test_what_is_not_on_the_list_is_for_admins(path: str) -> None:
    assert reach_of(_raw(path)) is Reach.ADMINS


@pytest.mark.parametrize("path", (*CONTROLS[:16], "/metrics"))
def test_a_control_route_with_anything_behind_it_is_for_no_ordinary_caller(path: str) -> None:
    for trailer in TRAILERS:
        assert reach_of(_raw(path + trailer)) is not Reach.ANYONE, trailer


@pytest.mark.parametrize("path", (*CONTROLS[:16], "/metrics"))
def test_a_disguised_path_is_relayed_for_nobody(path: str) -> None:
    for disguise in DISGUISES:
        for prefix in ("", "/v1", "/v1/models"):
            assert reach_of(_raw(prefix + disguise.format(path[1:]))) is Reach.NOBODY, (prefix, disguise)


@pytest.mark.parametrize(
    "path",
    (
        *(
            "/v1/LOAD_LORA_ADAPTER",
            "/v1/Load_Lora_Adapter/",
            "/v1/%6c%6f%61%64_lora_adapter",
            "/v1/loa%64_lora_adapter",
        ),
        *(
            "/v1%2Fload_lora_adapter",
            "/v1/x/load_lora_adapter",
            "/v1/x%2Fload_lora_adapter",
            "/v1/v1/load_lora_adapter",
        ),
        *("/v1/%ef%bd%8coad_lora_adapter", "/v1/load_lora_adapter%20", "/v1/load_lora_adapter."),
    ),
)
def test_a_control_route_in_another_spelling_is_for_no_ordinary_caller(path: str) -> None:
    assert reach_of(_raw(path)) is not Reach.ANYONE


@pytest.mark.parametrize(
    "raw_path", (b"", b"*", b"v1/models", b"http://a/v1/models", b"/v1/mod\xffels", b"/v1/a%", b"/v1/a%0", b"/v1/a#b")
)
def test_what_is_no_path_has_no_canonical_form(raw_path: bytes) -> None:
    assert canonical(raw_path) is None


@pytest.mark.parametrize("path", (*CONTROLS[2:21], "/is_paused", "/is_scaling_elastic_ep", "/reset_anything", "/redoc"))
def test_a_control_route_is_one_too_where_a_server_cuts_v1_off(path: str) -> None:
    for trailer in ("", "/", "%20x", "/x", "?a", "_x"):
        assert reach_of(_raw("/v1" + path + trailer)) is not Reach.ANYONE, trailer
    assert reach_of(_raw("/v1/models" + path)) is Reach.ANYONE


def test_one_slash_at_the_end_is_part_of_a_path() -> None:
    assert canonical(b"/v1/models/") == "/v1/models/"
    assert canonical(b"/v1/models//") is None
    assert canonical(b"/") == "/"
