"""Whom a simulated provider can speak like, by name."""

from __future__ import annotations

from headway.simulate.dialects.anthropic import Anthropic
from headway.simulate.dialects.azure import Azure
from headway.simulate.dialects.base import Dialect
from headway.simulate.dialects.gemini import Gemini
from headway.simulate.dialects.generic import Generic
from headway.simulate.dialects.groq import Groq
from headway.simulate.dialects.ietf import IETF
from headway.simulate.dialects.openai import OpenAI
from headway.simulate.dialects.openrouter import OpenRouter
from headway.simulate.dialects.together import Together
from headway.simulate.dialects.venice import Venice

DIALECTS: dict[str, Dialect] = {
    "openai": OpenAI(),
    "anthropic": Anthropic(),
    "azure": Azure(),
    "gemini": Gemini(),
    "groq": Groq(),
    "openrouter": OpenRouter(),
    "together": Together(),
    "venice": Venice(),
    "generic": Generic(),
    "ietf": IETF(),
}
