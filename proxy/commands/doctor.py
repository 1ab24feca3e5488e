"""`stellarchat doctor`: finds configuration and environment problems, and says how to fix them."""

import asyncio
import platform
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict

import click

from proxy import settings
from proxy.commands.console import as_json_option, print_json
from proxy.commands.doctor_database import look_at_database
from proxy.commands.doctor_machine import is_stellarchat, look_at_machine
from proxy.commands.finding import Finding, well, wrong
from proxy.commands.upstream_watch import refuse_own_address, without_models
from proxy.settings import ConfigurationError, Settings
from proxy.telemetry.request_lines import shows_colours
from proxy.upstream.client import Upstream


@click.command("doctor", short_help="Find problems and say how to fix them.")
@click.option("--upstream", help="vLLM's address, as for `serve`.")
@click.option("--demo", is_flag=True, help="As for `serve --demo`: without vLLM.")
@as_json_option
def doctor_command(*, upstream: str | None, demo: bool, as_json: bool) -> None:
    """Find problems and say how to fix them. Changes nothing. Exit code 1 if there are any."""
    options = {"STELLARCHAT_UPSTREAM_URL": upstream, "STELLARCHAT_DEMO": "on" if demo else None}
    findings = list(_findings({name: value for name, value in options.items() if value is not None}))
    if as_json:
        print_json({"ok": all(each.is_well for each in findings), "findings": [asdict(each) for each in findings]})
    else:
        for each in findings:
            mark = click.style("ok   ", fg="green") if each.is_well else click.style("wrong", fg="red", bold=True)
            click.echo(f"{mark} {each.about:<12} {each.message}", color=shows_colours(sys.stdout))
            if not each.is_well:
                click.echo(f"      {'':<12} -> {each.advice}")
    if not all(each.is_well for each in findings):
        sys.exit(1)


def _findings(options: Mapping[str, str]) -> Iterator[Finding]:
    yield well("python", f"{platform.python_version()} on {platform.system()}")
    try:
        loaded = settings.load(options)
    except ConfigurationError as exc:
        yield wrong("settings", str(exc), "correct it in the environment or in .env")
        return
    yield from _settings()
    yield from asyncio.run(_upstreams(loaded))
    yield from look_at_database(loaded)
    yield from look_at_machine(loaded)


def _settings() -> Iterator[Finding]:
    unknown = settings.unknown_names()
    for name, meant in unknown.items():
        advice = f"did you mean {meant}?" if meant else "remove it; `stellarchat serve --help` lists all"
        yield wrong("settings", f"{name} is not a setting of this program", advice)
    if not unknown:
        yield well("settings", "understood")


async def _upstreams(loaded: Settings) -> list[Finding]:
    if loaded.demo:
        return [well("upstream", "the built-in demo model")]
    try:
        refuse_own_address(loaded, (loaded.host, loaded.port))
    except ConfigurationError as exc:
        return [wrong("upstream", str(exc), "set STELLARCHAT_UPSTREAM_URL")]
    return [await _upstream(Upstream(loaded, address), loaded) for address in loaded.upstreams]


async def _upstream(upstream: Upstream, loaded: Settings) -> Finding:
    try:
        if not await upstream.probe():
            return wrong("upstream", f"{upstream.name}: {upstream.health.reason}", _advice(upstream, loaded))
        await upstream.read_models()
    finally:
        await upstream.close()
    if not upstream.models:
        what, advice = without_models(upstream, has_key=loaded.upstream_api_key is not None)
        return wrong("upstream", f"{upstream.name} {what}", advice)
    return well("upstream", f"{upstream.name} serves {', '.join(sorted(upstream.models)[:5])}")


def _advice(upstream: Upstream, loaded: Settings) -> str:
    """The next step if an upstream does not answer."""
    reason = upstream.health.reason or ""
    if "certificate" in reason:
        return "name a file with the certificate of its issuer in SSL_CERT_FILE, or use its http:// address"
    if ("without a response" in reason or "broke" in reason) and upstream.name.startswith("http:"):
        # Servers that speak TLS close or reset the connection of a request in plain text.
        return "if it speaks TLS, let STELLARCHAT_UPSTREAM_URL begin with https://; otherwise look into its log"
    advice = "start vLLM there, set STELLARCHAT_UPSTREAM_URL to its address, or "
    if is_stellarchat(loaded):
        return advice + "give --demo if the server runs with it"
    return advice + "try without it: `stellarchat serve --demo`"
