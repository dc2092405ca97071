#!/usr/bin/env python3
"""Runs one slowhttptest and asks /health meanwhile. Usage: NAME LIMIT SECONDS ADDRESS -- COMMAND…

Fails when a connection is open longer than LIMIT seconds (and a few for opening a thousand and for the clock of the
report), or when /health is slow or does not answer.
"""

import csv
import http.client
import subprocess
import sys
import time

# The promise for /health.
P99_MS = 50
# What opening them all takes, and how exact the report is.
SLACK = 8


def ask(address):
    started = time.perf_counter()
    connection = http.client.HTTPConnection(address, timeout=5)
    connection.request("GET", "/health")
    answer = connection.getresponse()
    answer.read()
    connection.close()
    if answer.status != 200:
        raise OSError(f"status {answer.status}")
    return (time.perf_counter() - started) * 1000


def main():
    name, limit, seconds, address = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    command = sys.argv[6:]
    prefix = command[command.index("-o") + 1]
    times, failures = [], 0
    # It ends by itself after SECONDS; if it does not, it is ended.
    test = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + seconds + 15
    try:
        while test.poll() is None and time.monotonic() < until:
            try:
                times.append(ask(address))
            except OSError:
                failures += 1
            time.sleep(0.02)
    finally:
        if test.poll() is None:
            test.terminate()
            test.wait()
    with open(prefix + ".csv", newline="") as file:
        rows = [{key.strip(): value for key, value in row.items() if key} for row in csv.DictReader(file)]
    most = max((int(row["Connected"]) for row in rows), default=0)
    last = max((int(row["Seconds"]) for row in rows if int(row["Connected"]) > 0), default=0)
    times.sort()
    p50, p99 = (times[min(len(times) - 1, int(len(times) * part))] if times else 0.0 for part in (0.5, 0.99))
    is_cut = most > 0 and last <= limit + SLACK
    is_quick = bool(times) and failures == 0 and p99 < P99_MS
    print(
        f"{name:6} up to {most} connected, the last until {last} s (limit {limit} s); /health: {len(times)} asked, "
        f"{failures} failed, p50 {p50:.1f} ms, p99 {p99:.1f} ms: {'ok' if is_cut and is_quick else 'NOT AS PROMISED'}",
        flush=True,
    )
    return 0 if is_cut and is_quick else 1


sys.exit(main())
