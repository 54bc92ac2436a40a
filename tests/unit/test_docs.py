"""The documentation is true: its code runs, its commands parse, its links lead somewhere."""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import pkgutil
import re
import shlex
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

import headway
from headway.batch.summary import Summary
from headway.cli import run, simulate
from headway.cli.main import main
from headway.scheduler import RateLimiterConfig, StateConfig, create_scheduler
from headway.simulate import SimulatorProcess
from redis_server import RedisServer

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
REFERENCE = ROOT / "docs" / "reference.md"
# Where a page's `headway simulate --port 8080` listens, as far as its readers see.
SHOWN_HOST = "127.0.0.1:8080"
SHOWN_REDIS = "redis://localhost:6379"

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
                text = block.text.replace(SHOWN_HOST, host)
                if SHOWN_REDIS in text:
                    server = RedisServer(tmp_path)
                    stack.callback(server.stop)
                    text = text.replace(SHOWN_REDIS, server.url)
                # On the lines where it stands, so that a traceback leads there.
                source = "\n" * (block.line - 1) + text
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


def public_modules() -> list[Any]:
    """Those that say what of theirs is public. A name that begins with _ is nobody's to import."""
    names = [each.name for each in pkgutil.walk_packages(headway.__path__, "headway.")]
    public = [name for name in names if not any(part[0] == "_" for part in name.split("."))]
    modules = [importlib.import_module(name) for name in ["headway", *public]]
    return [each for each in modules if hasattr(each, "__all__")]


def public_names() -> Iterator[str]:
    for module in public_modules():
        for name in module.__all__:
            yield name
            thing = getattr(module, name)
            if not inspect.isclass(thing):
                continue
            # What they have of str, of OSError or of Enum is Python's to tell.
            ours = [base for base in thing.__mro__ if base.__module__.startswith("headway")]
            yield from (each for base in ours for each in vars(base) if each[0] != "_")
            if ours and is_dataclass(thing):
                yield from (field.name for field in fields(thing) if field.name[0] != "_")


def test_the_modules_that_are_looked_at_are_all_that_people_import() -> None:
    looked_at = {module.__name__ for module in public_modules()}
    code = "\n".join(block.text for page in PAGES for block in blocks_of(page))
    imported = set(re.findall(r"^(?:from|import) (headway[\w.]*)", code, re.MULTILINE))
    assert imported - looked_at == set()


def test_every_public_name_is_in_the_reference() -> None:
    # As a whole word in code or in a heading, not just in some sentence.
    # The options of state have a page of their own.
    text = prose_of(REFERENCE) + prose_of(REFERENCE.with_name("options.md"))
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
