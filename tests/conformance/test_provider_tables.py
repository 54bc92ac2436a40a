"""What each provider's answers say of limits, by its table; one file of vectors for each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from headway import _core
from headway.errors import ConfigurationError
from headway.providers import ProviderTable, provider_tables, table_for

HERE = Path(__file__).parent
NOW = 1_800_000_000.0
VECTORS = [
    pytest.param(path.stem, vector, id=f"{path.stem}: {vector['why']}")
    for path in sorted(HERE.glob("*.json"))
    for vector in json.loads(path.read_text(encoding="utf-8"))
    if "says" in vector
]


@pytest.mark.parametrize(("name", "vector"), VECTORS)
def test_an_answer_says(name: str, vector: dict[str, Any]) -> None:
    readings = provider_tables()[name].read(vector["headers"], NOW, vector.get("body"))
    expected = [
        {key: pytest.approx(value) if key == "reset" else value for key, value in each.items()}
        for each in vector["says"]
    ]
    assert readings.as_list() == expected
    assert len(readings) == len(expected)


def test_each_table_has_its_vectors_and_says_where_its_facts_are_from() -> None:
    tables = set(provider_tables())
    assert tables == {path.stem for path in HERE.glob("*.json")}
    data = Path(__file__).parents[2] / "python" / "headway" / "providers" / "data"
    for name in tables:
        table = json.loads((data / f"{name}.json").read_text(encoding="utf-8"))
        assert table["as_of"]
        assert table["version"] >= 1
        known = {"assumed", *table["sources"]}
        facts = [table["debt"], *([table["credit"]] if "credit" in table else [])]
        for member in ("limits", "body_limits", "waits", "errors", "buckets", "reserve", "refund"):
            facts += table.get(member, [])
        assert all(fact.get("source") in known for fact in facts), name


@pytest.mark.parametrize(
    ("base_url", "name"),
    [
        ("https://api.openai.com/v1", "openai"),
        ("https://api.anthropic.com", "anthropic"),
        ("https://api.groq.com/openai/v1/", "groq"),
        ("https://example.com/v1", "generic"),
        ("https://api.openai.com.example.com/v1", "generic"),
        ("not a url", "generic"),
        (None, "generic"),
        (7, "generic"),
        ("http://[::1", "generic"),
        ("https://mine.openai.azure.com/openai/v1", "azure"),
        ("https://openai.azure.com.example.com", "generic"),
        ("https://generativelanguage.googleapis.com/v1beta/openai/", "gemini"),
        ("https://us-central1-aiplatform.googleapis.com/v1", "gemini"),
        ("https://openrouter.ai/api/v1", "openrouter"),
        ("https://api.novita.ai/v3/openai", "novita"),
        (httpx.URL("https://api.openai.com/v1/"), "openai"),
    ],
)
def test_a_table_is_found_by_the_host_of_the_base_url(base_url: object, name: str) -> None:
    assert table_for(base_url).name == name


def test_a_table_of_ones_own_is_read_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text(
        json.dumps(
            {
                "name": "mine",
                "hosts": ["api.example.com"],
                "limits": [
                    {"resource": "requests", "limit": "x-max", "remaining": "x-left", "period": 10}
                ],
            }
        )
    )
    table = ProviderTable.load(file)
    assert repr(table) == "<headway.providers.ProviderTable mine>"
    assert table.read({"x-max": "7", "x-left": "3"}).as_list() == [
        {"resource": "requests", "family": 0, "limit": 7, "remaining": 3, "period": 10.0}
    ]


@pytest.mark.parametrize(
    ("table", "why"),
    [
        ([], "must be a JSON object"),
        ({"limits": []}, "name None: must be a str"),
        ({"name": "a"}, "limits None: must be a list of objects"),
        ({"name": "a", "limits": [7]}, "limits .7.: must be a list of objects"),
        ({"name": "a", "limits": [], "host": "b"}, "there is no 'host' in one"),
        ({"name": "a", "limits": [], "hosts": "b"}, "hosts 'b': must be a list of str"),
        ({"name": "a", "limits": [{"limits": "x"}]}, r"limits\[0\]: there is no 'limits' in one"),
        ({"name": "a", "limits": [{"reset_form": "soon"}]}, "reset_form 'soon': must be any, "),
        ({"name": "a", "limits": [{"shape": "round"}]}, "shape 'round': must be bucket, fixed or"),
        ({"name": "a", "limits": [{"period": -1}]}, "period -1: must be a number of seconds from"),
        ({"name": "a", "limits": [{"limit": 7}]}, "mine.json"),
        ({"name": "a", "limits": [{"period": 1e-9}]}, "period 1e-09: must be from 0.001 seconds"),
        ({"name": "a", "limits": [{"slice": 10}]}, r"limits\[0\]: slice 10: needs a limit"),
        ({"name": "a", "limits": [], "version": 0}, "version 0: must be a whole number from 1"),
        ({"name": "a", "limits": [], "policies": 1}, "policies 1: must be true or false"),
        ({"name": "a", "limits": [], "sources": []}, r"sources \[\]: must be an object of them"),
        ({"name": "a", "limits": [], "sources": {"d": {"from": "x"}}}, "'d': date None: must be a"),
        ({"name": "a", "limits": [{"source": "b"}]}, "source 'b': must be one of the sources, or"),
        ({"name": "a", "limits": [], "body_limits": [{"at": "e"}]}, "limit None: must be the path"),
        ({"name": "a", "limits": [], "waits": [{"at": "e..f"}]}, r"waits\[0\]: at 'e\.\.f': must"),
        (
            {"name": "a", "limits": [], "body_limits": [{"limit": "a..b"}]},
            r"body_limits\[0\]: limit 'a\.\.b': must be names with dots between",
        ),
        (
            {"name": "a", "limits": [], "body_limits": [{"limit": "n", "pattern": "("}]},
            "pattern '.': must be a regular expression",
        ),
        (
            {"name": "a", "limits": [], "body_limits": [{"limit": "n", "pattern": "(?P<x>.)"}]},
            "pattern .*: must have groups named limit, remaining, used, reset, no others",
        ),
        ({"name": "a", "limits": [], "waits": [{"form": "soon"}]}, "form 'soon': must be any, dur"),
        (
            {"name": "a", "limits": [], "errors": [{"class": "bad"}]},
            "class 'bad': must be refused,",
        ),
        ({"name": "a", "limits": [], "errors": [{"class": "spent"}]}, "status None: there must be"),
        (
            {"name": "a", "limits": [], "errors": [{"class": "spent", "status": 200}]},
            "status 200: must be a status of 400 to 999",
        ),
        (
            {"name": "a", "limits": [], "errors": [{"class": "spent", "status": 400, "is": "x"}]},
            "at None: must say of what text",
        ),
        (
            {"name": "a", "limits": [], "errors": [{"class": "spent", "at": "e", "is": [7]}]},
            r"is \[7\]: must be a str or a list of str",
        ),
        ({"name": "a", "limits": [], "buckets": [{"models": "x"}]}, "bucket None: must be a str"),
        (
            {
                "name": "a",
                "limits": [],
                "buckets": [{"models": "x*", "bucket": "y"}, {"models": "y", "bucket": "z"}],
            },
            r"buckets\[0\]: bucket 'y': must not be a model of another bucket, 'z'",
        ),
        (
            {"name": "a", "limits": [], "reserve": [{"resource": "tokens", "as": "most"}]},
            "as 'most': must be largest, sum, input, output or expected",
        ),
        (
            {"name": "a", "limits": [], "refund": [{"resource": "tokens", "of": "half"}]},
            "of 'half': must be unused or nothing",
        ),
        ({"name": "a", "limits": [], "debt": {"is": "none"}}, "debt: is 'none': must be absolute"),
        ({"name": "a", "limits": [], "debt": 7}, "debt 7: must be an object"),
        (
            {"name": "a", "limits": [], "credit": {"path": "key", "left": "left"}},
            "credit: path 'key': must begin with /",
        ),
        (
            {"name": "a", "limits": [], "credit": {"path": "/key"}},
            "credit: left None: must be names with dots between",
        ),
    ],
)
def test_a_table_that_makes_no_sense_says_where(tmp_path: Path, table: object, why: str) -> None:
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(table))
    with pytest.raises(ConfigurationError, match=why) as raised:
        ProviderTable.load(file)
    assert "mine.json" in str(raised.value)


def test_a_reading_has_a_family_of_one_byte() -> None:
    for family in (-1, 256):
        with pytest.raises(ValueError, match=f"family {family}: must be from 0 to 255"):
            _core.Readings([{"family": family}])


def test_a_file_that_is_no_json_says_so(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text("{")
    with pytest.raises(ConfigurationError, match=r"mine\.json"):
        ProviderTable.load(file)
