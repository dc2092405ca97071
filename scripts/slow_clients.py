#!/usr/bin/env python3
"""Runs one slowhttptest and asks /health meanwhile. Usage: NAME LIMIT SECONDS ADDRESS -- COMMAND…

Fails when the system holds a connection for the service longer than LIMIT seconds (and a few for opening a thousand), or
when /health is slow or does not answer. What slowhttptest itself says of connections is no measure: a client that does not
read does not notice either that it was cut off.
"""

import http.client
import subprocess
import sys
import time

# The promise for /health.
P99_MS = 50
# What opening them all takes.
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


def held(port):
    """The service's side of connections: those that are open, and those that have something left to send."""
    open_now = 0
    with open("/proc/net/tcp") as table:
        for line in table.readlines()[1:]:
            _, local, _, state, queues = line.split()[:5]
            # ESTABLISHED and CLOSE_WAIT, or closed by the service with bytes that nobody takes.
            is_sending = state in ("04", "0B", "09") and int(queues.split(":")[0], 16) > 0
            if int(local.split(":")[1], 16) == port and (state in ("01", "08") or is_sending):
                open_now += 1
    return open_now


def main():
    name, limit, seconds, address = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    command = sys.argv[6:]
    port = int(address.rsplit(":", 1)[1])
    times, failures, most, last, looked = [], 0, 0, 0.0, 0.0
    # It ends by itself after SECONDS; if it does not, it is ended.
    test = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    started = time.monotonic()
    until = started + seconds + 15
    try:
        while test.poll() is None and time.monotonic() < until:
            try:
                times.append(ask(address))
            except OSError:
                failures += 1
            if time.monotonic() - looked > 0.5:
                looked = time.monotonic()
                count = held(port)
                most = max(most, count)
                # Those of the test's own questions aside.
                last = looked - started if count > 5 else last
            time.sleep(0.02)
    finally:
        if test.poll() is None:
            test.terminate()
            test.wait()
    times.sort()
    p50, p99 = (times[min(len(times) - 1, int(len(times) * part))] if times else 0.0 for part in (0.5, 0.99))
    is_cut = last <= limit + SLACK
    is_quick = bool(times) and failures == 0 and p99 < P99_MS
    print(
        f"{name:6} up to {most} held, the last until {last:.0f} s (limit {limit} s); /health: {len(times)} asked, "
        f"{failures} failed, p50 {p50:.1f} ms, p99 {p99:.1f} ms: {'ok' if is_cut and is_quick else 'NOT AS PROMISED'}",
        flush=True,
    )
    return 0 if is_cut and is_quick else 1


sys.exit(main())
