"""Providers: what is known of one API's limits, and how its responses tell them."""

from __future__ import annotations

from headway.providers.interface import DiscoveredBucket, ProviderInterface, RateLimitInfo

__all__ = ["DiscoveredBucket", "ProviderInterface", "RateLimitInfo"]
