"""Accounts: tenants that share buckets by weight, with limits of their own if wanted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from headway._core import Limit
from headway.errors import ConfigurationError

LEAST_WEIGHT = 0.001
MOST_WEIGHT = 1e6


@dataclass(frozen=True)
class Account:
    """A `client_id`'s weight, and limits that hold over all buckets together.

    weight: 0.001 to 1_000_000; twice the weight is twice the share of what several wait for.
    limits: Limit objects or their text form; what they count is counted here, at admission.
    """

    weight: float = 1.0
    limits: Sequence[Limit | str] = field(default=())

    def __post_init__(self) -> None:
        weight: object = self.weight
        number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
        # Beyond that, sums of what accounts were given could not be told apart any more.
        if not number or not LEAST_WEIGHT <= self.weight <= MOST_WEIGHT:
            raise ConfigurationError(
                f"weight {self.weight!r}: must be a number from 0.001 to 1_000_000"
            )
        limits: object = [self.limits] if isinstance(self.limits, (str, Limit)) else self.limits
        if not isinstance(limits, Iterable):
            raise ConfigurationError(f"limits {limits!r}: must be a list of limits")
        object.__setattr__(self, "limits", tuple(as_limit(each, "limits") for each in limits))


def as_limit(given: object, what: str) -> Limit:
    """A Limit as it is, or from its text; else ConfigurationError, which names `what`."""
    if isinstance(given, Limit):
        return given
    if not isinstance(given, str):
        raise ConfigurationError(
            f"{what} {given!r}: must be a Limit or its text, as in '500 requests/min'"
        )
    try:
        return Limit.parse(given)
    except ValueError as error:
        raise ConfigurationError(f"{what}: {error}") from None


def read_accounts(given: Mapping[str, float | Account] | None) -> dict[str, Account]:
    """The accounts by `client_id`, where a bare number is a weight."""
    if not isinstance(given or {}, Mapping):
        raise ConfigurationError(
            f"accounts {given!r}: must be a dict of weights or Accounts by client_id"
        )
    accounts: dict[str, Account] = {}
    for client_id, account in (given or {}).items():
        if not isinstance(client_id, str):
            raise ConfigurationError(f"accounts {client_id!r}: a client_id must be a str")
        try:
            accounts[client_id] = account if isinstance(account, Account) else Account(account)
        except ConfigurationError as error:
            raise ConfigurationError(f"accounts {client_id!r}: {error}") from None
    return accounts
