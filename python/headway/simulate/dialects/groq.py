"""What Groq says, as https://console.groq.com/docs/rate-limits and recorded answers tell."""

from __future__ import annotations

import json

from headway.simulate.admission import Refusal
from headway.simulate.dialects.base import Asked, told_of
from headway.simulate.dialects.openai import Compatible, kind_of, numbers_of
from headway.simulate.forms import seconds

_PERIODS = {1.0: "second", 60.0: "minute", 3600.0: "hour", 86400.0: "day"}
_MORE = "Need more tokens? Upgrade to Dev Tier today at https://console.groq.com/settings/billing"


class Groq(Compatible):
    """OpenAI's names, but of requests those of a day are told, and of tokens those of a minute.

    Limits of other periods are enforced, too, and told in no header.
    """

    prefixes = ("/openai/v1/",)
    told = (
        told_of("requests", "x-ratelimit-*-requests", period=86400.0),
        told_of("tokens", "x-ratelimit-*-tokens", period=60.0),
    )
    retry = (("retry-after", seconds),)
    periods = _PERIODS

    def refusal_status(self, refusal: Refusal) -> int:
        return 413 if refusal.never else 429

    def refusal_body(self, refusal: Refusal, asked: Asked) -> bytes:
        rule = refusal.rule
        where = (
            f"for model `{asked.model}` in organization `org_simulated` service tier `on_demand` "
            f"on {self.unit(rule)}"
        )
        if refusal.never:
            text = (
                f"Request too large {where}: Limit {rule.amount}, Requested {refusal.cost}, "
                f"please reduce your message size and try again. {_MORE}"
            )
        else:
            text = f"Rate limit reached {where}: {numbers_of(refusal)} {_MORE}"
        fault = {"message": text, "type": kind_of(rule), "code": "rate_limit_exceeded"}
        return json.dumps({"error": fault}).encode()
