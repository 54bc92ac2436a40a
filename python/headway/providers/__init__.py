"""Providers: what is known of one API's limits, and how its responses tell them."""

from __future__ import annotations

from headway.providers.interface import DiscoveredBucket, ProviderInterface, RateLimitInfo
from headway.providers.table import ProviderTable, provider_tables, table_for

__all__ = [
    "DiscoveredBucket",
    "ProviderInterface",
    "ProviderTable",
    "RateLimitInfo",
    "provider_tables",
    "table_for",
]
