"""Rules that hold for the whole route table."""

from proxy.routes import route_table
from proxy.settings import Settings
from proxy.web.markdown_process import MarkdownProcess


def test_no_route_matches_before_a_newline_at_the_end_of_a_path() -> None:
    for route in route_table(Settings(), MarkdownProcess()):
        path = route.path
        for name in route.param_convertors:
            for kind in ("", ":path"):
                path = path.replace(f"{{{name}{kind}}}", "x")
        assert route.path_regex.match(path), path
        if not route.path.endswith("}"):  # then the newline is part of an id
            assert not route.path_regex.match(path + "\n"), path


def test_the_routes_of_a_second_application_have_the_same_patterns() -> None:
    first, second = (
        [route.path_regex.pattern for route in route_table(Settings(), MarkdownProcess())] for _ in range(2)
    )
    assert first == second
