"""Between observers and the CalibrationTable that keeps them."""

from __future__ import annotations

from collections.abc import Mapping

from vitdeploy.artifacts import TensorRange
from vitdeploy.quantization.collector import Observers
from vitdeploy.quantization.observers import (
    ChannelObserver,
    HistogramObserver,
    RangeObserver,
    TensorObserver,
)


def ranges_of(observers: Mapping[str, TensorObserver]) -> dict[str, TensorRange]:
    """Return what the observers saw, as a table stores it."""
    return {
        name: TensorRange(
            lo=observer.range.lo,
            hi=observer.range.hi,
            count=observer.range.count,
            exponent=observer.histogram.exponent,
            counts=observer.histogram.counts,
            channels=observer.channels.amax,
        )
        for name, observer in observers.items()
    }


def observers_of(ranges: Mapping[str, TensorRange]) -> Observers:
    """Return observers in the state that a table stores."""
    observers: Observers = {}
    for name, found in ranges.items():
        observer = TensorObserver(name)
        observer.range = RangeObserver(found.lo, found.hi, found.count)
        observer.histogram = HistogramObserver(found.counts.copy(), found.exponent)
        observer.channels = ChannelObserver(None if found.channels is None else found.channels.copy())
        observers[name] = observer
    return observers
