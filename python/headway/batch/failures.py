"""Attempts that have failed, as a scheduler reads them."""

from __future__ import annotations

from headway.batch.results import Outcome
from headway.scheduler.answers import FINAL


class Failed(Exception):
    """An attempt that has failed, as a scheduler reads it: its status, headers and body.

    final: it is not to be tried again, whatever it says.
    """

    def __init__(self, outcome: Outcome, *, final: bool = False) -> None:
        super().__init__(outcome.why)
        self.outcome = outcome
        self.status_code = outcome.status
        self.headers = outcome.headers
        self.body = outcome.body
        self.extensions = {FINAL: final}


class MayPass(Failed):
    """One that another attempt may do better than, if its answer does not say otherwise."""
