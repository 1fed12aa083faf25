"""What tests of decisions that depend on time share."""

from __future__ import annotations

import pytest


class Clock:
    """Gives the seconds that it is set to."""

    def __init__(self) -> None:
        self.now = 5000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()
