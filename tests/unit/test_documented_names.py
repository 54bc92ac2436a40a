"""The names that the documentation imports: each is there, and public."""

from __future__ import annotations

import importlib

import pytest

TOP = """
RateLimiterError CapacityExceededError BucketNotFoundError ReservationCapacityError
BackendConnectionError BackendOperationError ConfigurationError QueueOverflowError
TooManyFailedRequestsError ClientProtocol ClassifierProtocol RequestMetadata
StreamingResponseProtocol ProviderInterface DiscoveredBucket RateLimitInfo ReservationContext
ReservationTracker ResourceType RESOURCE_TYPES TEXT IMAGE AUDIO EMBEDDING GENERIC
StreamingReservationContext RateLimitedAsyncIterator
"""
SCHEDULER = """
Scheduler create_scheduler RateLimiterConfig StateConfig SchedulerMode CachePolicy
"""


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("headway", TOP),
        ("headway.scheduler", SCHEDULER),
        ("headway.backends", "BaseBackend MemoryBackend"),
    ],
)
def test_every_documented_name_can_be_imported(module: str, names: str) -> None:
    found = importlib.import_module(module)
    for name in names.split():
        assert getattr(found, name) is not None
        assert name in found.__all__
