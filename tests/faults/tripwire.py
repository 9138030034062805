"""Stand between the library and the disk: count the calls that change something, and meddle with them."""

import os
from contextlib import contextmanager

CALLS = ("open", "write", "fsync", "fdatasync", "ftruncate", "replace", "unlink", "mkdir")


@contextmanager
def tripwire(trip):
    """While this lasts, `trip(number, name, call, args)` is asked to do each call; `call()` does it.

    Numbers count from 1. `call(half=True)` of a write writes the first half only.
    """
    real = {name: getattr(os, name) for name in CALLS if hasattr(os, name)}
    count = 0

    def stand_in(name):
        def stand_in_for_call(*args, **kwargs):
            nonlocal count
            count += 1

            def call(half=False):
                if half and name == "write":
                    view = memoryview(args[1])
                    return real["write"](args[0], view[: (len(view) + 1) // 2])
                return real[name](*args, **kwargs)

            return trip(count, name, call, args)

        return stand_in_for_call

    for name in real:
        setattr(os, name, stand_in(name))
    try:
        yield
    finally:
        for name, function in real.items():
            setattr(os, name, function)
