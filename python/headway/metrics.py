"""What all schedulers of this process count, for Prometheus and for anybody else."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

from headway import _core

__all__ = ["collector", "exposition", "publish"]

_lock = threading.Lock()
_published = False


def exposition() -> str:
    """All metrics in Prometheus's text format; needs no other package. Thread-safe."""
    return _core.metrics_text()


def publish() -> bool:
    """Puts them into prometheus_client's default registry, once; whether they are there.

    False where prometheus_client is not installed.
    """
    global _published  # noqa: PLW0603 - one registry, one collector, one process
    with _lock:
        if _published:
            return True
        try:
            from prometheus_client import REGISTRY
        except ImportError:
            return False
        REGISTRY.register(collector())
        _published = True
        return True


def collector() -> Any:
    """A custom collector for a prometheus_client registry; ImportError where that is not there."""
    from prometheus_client.core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
        Metric,
    )
    from prometheus_client.registry import Collector

    def family(name: str, kind: str, text: str, samples: list[Any]) -> Metric:
        labels = sorted({label for each, _ in samples for label in each})
        if kind == "histogram":
            histogram = HistogramMetricFamily(name, text, labels=labels)
            for each, (buckets, total, _) in samples:
                bounds = [(_bound(bound), count) for bound, count in buckets]
                histogram.add_metric([each[label] for label in labels], bounds, total)
            return histogram
        plain = CounterMetricFamily if kind == "counter" else GaugeMetricFamily
        metric = plain(name, text, labels=labels)
        for each, value in samples:
            metric.add_metric([each[label] for label in labels], value)
        return metric

    class HeadwayCollector(Collector):  # type: ignore[misc,unused-ignore]
        """Reads what the core has counted whenever it is asked."""

        def collect(self) -> Iterator[Metric]:
            for name, kind, text, samples in _core.collect_metrics():
                yield family(name, kind, text, samples)

        def describe(self) -> Iterator[Metric]:
            # Registering must not read anything, and names are headway's own.
            return iter(())

    return HeadwayCollector()


def _bound(bound: float) -> str:
    return "+Inf" if bound == float("inf") else repr(bound)
