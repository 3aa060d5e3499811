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
