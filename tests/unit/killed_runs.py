"""Runs that are killed at a step, and what the one after them does."""

import pytest


class KilledError(Exception):
    """What ends a run midway."""


def after_kills(train, kills):
    """What `train` returns after runs that were killed at `kills`, and the steps that it tells.

    `train` is given a function to tell each step's number to; a run is killed in it.
    """
    for kill in kills:

        def on_step(step, kill=kill):
            if step == kill:
                raise KilledError

        with pytest.raises(KilledError):
            train(on_step)
    steps = []
    return train(steps.append), steps
