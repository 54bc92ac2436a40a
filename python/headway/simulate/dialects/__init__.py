"""Whom a simulated provider can speak like, by name."""

from __future__ import annotations

from headway.simulate.dialects.anthropic import Anthropic
from headway.simulate.dialects.base import Dialect
from headway.simulate.dialects.openai import OpenAI

DIALECTS: dict[str, Dialect] = {
    "openai": OpenAI(),
    "anthropic": Anthropic(),
}
