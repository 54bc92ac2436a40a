"""The documentation is true: its code runs, its commands parse, its links lead somewhere."""

from __future__ import annotations

import argparse
import inspect
import json
import re
import shlex
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, fields
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

import headway
import headway.backends
import headway.scheduler
import headway.simulate
import headway.strategies
import headway.transports
from headway.batch.summary import Summary
from headway.cli import run, simulate
from headway.cli.main import main
from headway.scheduler import RateLimiterConfig, StateConfig, create_scheduler
from headway.simulate import SimulatorProcess

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
REFERENCE = ROOT / "docs" / "reference.md"
# Where a page's `headway simulate --port 8080` listens, as far as its readers see.
SHOWN_HOST = "127.0.0.1:8080"

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INLINE_COMMAND = re.compile(r"`(headway (?:run|simulate) [^`\[]*--[^`\[]*)`")
_LINK = re.compile(r"\]\(([^()\s]+)\)")
_HEADING = re.compile(r"^#+ +(.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block; `line` is that of its first line."""

    language: str
    line: int
    text: str

    @property
    def commands(self) -> list[list[str]]:
        """The arguments of each `headway …` line, if this is for a shell."""
        if self.language != "sh":
            return []
        lines = self.text.replace("\\\n", " ").splitlines()
        words = [shlex.split(line, comments=True) for line in lines]
        return [each[1:] for each in words if each[:1] == ["headway"]]


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text()
    return [
        Block(match[1], text.count("\n", 0, match.start(2)) + 1, match[2])
        for match in _FENCE.finditer(text)
    ]


def prose_of(page: Path) -> str:
    return _FENCE.sub("", page.read_text())


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def command_line() -> argparse._SubParsersAction[argparse.ArgumentParser]:
    """The subcommands as the command itself makes them."""
    subparsers = argparse.ArgumentParser(prog="headway").add_subparsers(required=True)
    run.add_parser(subparsers)
    simulate.add_parser(subparsers)
    return subparsers


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_python_block_runs_and_so_do_the_commands_against_the_simulator(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    namespace: dict[str, Any] = {"__name__": "docs"}
    blocks = blocks_of(page)
    with ExitStack() as stack:
        host = SHOWN_HOST
        served = [c for b in blocks for c in b.commands if c[0] == "simulate" and "8080" in c]
        if served:
            # The page's own options, on a port that is free.
            options = [option if option != "8080" else "0" for option in served[0][1:]]
            host = stack.enter_context(SimulatorProcess(*options)).url.removeprefix("http://")
        for block in blocks:
            if block.language == "python":
                # On the lines where it stands, so that a traceback leads there.
                source = "\n" * (block.line - 1) + block.text.replace(SHOWN_HOST, host)
                exec(compile(source, str(page), "exec", dont_inherit=True), namespace)
            for command in block.commands:
                if command[0] == "run" and any(SHOWN_HOST in word for word in command):
                    assert main([word.replace(SHOWN_HOST, host) for word in command]) == 0


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_line_is_one_that_the_command_takes(
    page: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inline = [shlex.split(text)[1:] for text in _INLINE_COMMAND.findall(prose_of(page))]
    for command in [*inline, *(c for block in blocks_of(page) for c in block.commands)]:
        try:
            command_line().choices[command[0]].parse_args(command[1:])
        except (KeyError, SystemExit):
            pytest.fail(f"headway {shlex.join(command)}: {capsys.readouterr().err}")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_to_a_file_and_a_heading_in_it(page: Path) -> None:
    for link in _LINK.findall(prose_of(page)):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_file(), f"{link}: no such file"
        if anchor:
            headings = _HEADING.findall(_FENCE.sub("", target.read_text()))
            assert anchor in {slug(heading) for heading in headings}, f"{link}: no such heading"


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def public_names() -> Iterator[str]:
    rooms = (headway.backends, headway.scheduler, headway.strategies)
    for module in (headway, *rooms, headway.simulate, headway.transports):
        for name in module.__all__:
            yield name
            thing = getattr(module, name)
            # ResourceType is a name for str, whose methods are not ours to tell.
            ours = inspect.isclass(thing) and thing.__module__.startswith("headway")
            if module is headway and ours and not issubclass(thing, Exception):
                yield from (each for each in dir(thing) if not each.startswith("_"))


def test_every_public_name_is_in_the_reference() -> None:
    # As a whole word in code or in a heading, not just in some sentence.
    text = prose_of(REFERENCE)
    said = " ".join([*re.findall(r"`([^`]+)`", text), *_HEADING.findall(text)])
    words = set(re.findall(r"\w+", said))
    assert sorted(set(public_names()) - words) == []


def section_of(heading: str) -> str:
    sections = re.split(r"^## ", REFERENCE.read_text(), flags=re.MULTILINE)
    return next(each for each in sections if each.startswith(f"{heading}\n"))


@pytest.mark.parametrize("command", ["run", "simulate"])
def test_every_option_and_no_other_is_in_the_reference(command: str) -> None:
    mine = section_of(f"headway {command}")
    documented = set(re.findall(r"^\| `(--[\w-]+)", mine, re.MULTILINE))
    real = {
        option
        for action in command_line().choices[command]._actions
        for option in action.option_strings
        if option.startswith("--") and option != "--help"
    }
    assert documented == real


def test_every_key_of_the_summary_is_in_the_reference() -> None:
    said = set(re.findall(r"`(\w+)`", section_of("headway run")))
    assert {field.name for field in fields(Summary)} <= said


def table_of(page: str) -> dict[str, str]:
    """Of all tables of a page: the rest of the row, by each name that its first cell has."""
    rows = re.findall(r"^\| (`.+?`) \|(.*)$", (ROOT / "docs" / page).read_text(), re.MULTILINE)
    return {name: rest for names, rest in rows for name in re.findall(r"`([^`]+)`", names)}


@pytest.mark.parametrize("options", [RateLimiterConfig(), StateConfig()], ids=["config", "state"])
def test_every_option_has_its_default_on_its_page(options: Any) -> None:
    page = (ROOT / "docs" / "options.md").read_text()
    # Both have a batch_size: each is looked for in its own half.
    first, second = page.split("\n## StateConfig\n")
    half = first if isinstance(options, RateLimiterConfig) else second
    rows = [line.split(" | ") for line in half.splitlines() if line.startswith("| `")]
    for field in fields(options):
        shown_at = next((row[1] for row in rows if f"`{field.name}`" in row[0]), "")
        default = field.default
        shown = str(default) if isinstance(default, Enum) else json.dumps(default)
        if default is None or isinstance(default, bool):
            shown = str(default)
        assert shown in shown_at.replace("`", ""), field.name


def test_every_key_of_get_metrics_is_on_its_page() -> None:
    told = table_of("metrics.md")
    for mode in ("basic", "intelligent", "account"):
        assert set(create_scheduler(None, mode=mode).get_metrics()) <= set(told)


def test_every_error_is_on_its_page() -> None:
    page = (ROOT / "docs" / "exceptions.md").read_text()
    errors = [each for each in headway.__all__ if each.endswith("Error")]
    sections = {name for heading in _HEADING.findall(page) for name in heading.split(", ")}
    assert set(errors) - {"RateLimiterError"} <= sections
