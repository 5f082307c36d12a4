"""Between observers and the CalibrationTable that keeps them."""

from __future__ import annotations

from collections.abc import Mapping

from vitdeploy.artifacts import TensorRange
from vitdeploy.quantization.collector import Observers
from vitdeploy.quantization.observers import HistogramObserver, RowSample, TensorObserver


def ranges_of(observers: Mapping[str, TensorObserver]) -> dict[str, TensorRange]:
    """Return what the observers saw, as a table stores it; tensors that were never seen are left out."""
    return {
        name: TensorRange(
            axis=observer.axis,
            lo=observer.lo,
            hi=observer.hi,
            count=observer.count,
            exponent=observer.histogram.exponent,
            counts=observer.histogram.counts,
            keys=observer.sample.keys,
            rows=observer.sample.rows,
            most_rows=observer.sample.most_rows,
        )
        for name, observer in observers.items()
        if observer.lo is not None and observer.hi is not None
    }


def observers_of(ranges: Mapping[str, TensorRange]) -> Observers:
    """Return observers in the state that a table stores."""
    observers: Observers = {}
    for name, found in ranges.items():
        observer = TensorObserver(name, found.axis)
        observer.lo, observer.hi, observer.count = found.lo.copy(), found.hi.copy(), found.count
        observer.histogram = HistogramObserver(found.counts.copy(), found.exponent)
        observer.sample = RowSample(found.keys.copy(), list(found.rows.copy()), found.most_rows)
        observers[name] = observer
    return observers
