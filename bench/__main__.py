"""`make bench` runs all measurements; `make bench ARGS="sync webhooks"` runs some."""

import importlib
import sys
import time

_ALL = (
    "sync",
    "windows",
    "scheduler",
    "fairness",
    "recovery",
    "events_list",
    "changes",
    "webhooks",
    "push",
    "meeting_urls",
    "invitations",
    "gauges",
    "availability",
    "join_rules",
)


def main() -> None:
    names = sys.argv[1:] or _ALL
    unknown = set(names) - set(_ALL)
    if unknown:
        sys.exit(f"No benchmark named {', '.join(sorted(unknown))}; there are {', '.join(_ALL)}.")
    for name in names:
        print(f"\n== {name}", flush=True)
        started = time.perf_counter()
        importlib.import_module(f"bench.{name}").main()
        print(f"({time.perf_counter() - started:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
