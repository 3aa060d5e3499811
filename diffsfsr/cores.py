"""How many CPU cores this process may use."""

import os


def cores() -> int:
    """DIFFSFSR_CORES where it is set, else the cores that the system lets this process run on.

    On a machine that others use too, fewer is faster: threads that wait for a core hold up all the others.
    """
    given = os.environ.get("DIFFSFSR_CORES", "")
    if given.isdigit():
        return max(1, int(given))
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads() -> int:
    """How many threads one process should compute with: all cores but one.

    The threads of a layer wait for the slowest of them. With as many as there are cores, any other program on the machine holds up
    every layer; measured on two cores, two threads are then ten times slower than one.
    """
    return max(1, cores() - 1)
