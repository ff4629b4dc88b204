"""Bytes and seconds in words."""

import pytest

from paramscope.units import amount, time_unit_of, unit_of


@pytest.mark.parametrize(
    ("size", "told"),
    [
        (None, "unknown"), (0, "0.0 kB"), (12, "0.0 kB"), (1234, "1.2 kB"), (1e6, "1.0 MB"),
        (84_825_604_096, "84.8 GB"), (1e12, "1.0 TB"), (62.7e15, "62.7 PB"), (2e18, "2.0 EB"),
    ],
)  # fmt: skip
def test_bytes_are_told_in_the_largest_unit(size, told):
    assert amount(size) == told


def test_tables_and_figures_end_at_gigabytes():
    assert unit_of(3e12) == (1e9, "GB")
    assert unit_of(1e6) == (1e6, "MB")
    assert unit_of(999.0) == (1e3, "kB")
    assert time_unit_of(1.0) == (1.0, "s")
    assert time_unit_of(0.2) == (1e-3, "ms")
