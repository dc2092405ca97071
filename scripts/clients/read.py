"""Unmodified packages from PyPI read the service's streams: through cuts, to the end, and until they are stopped.

    python read.py ADDRESS     of the cutting proxy
"""

import asyncio
import json
import sys

import aiohttp
import requests
import requests_sse
import sseclient
import websocket
import websockets.asyncio.client
import websockets.exceptions
from aiohttp_sse_client import client as aiohttp_sse

BASE = sys.argv[1]


class Answer:
    """The text of a stream, as README's page keeps it."""

    def __init__(self):
        self.text, self.chunks, self.last, self.seen = "", 0, None, None

    def take(self, event):
        if event["type"] == "START":
            self.text = ""
        elif event["type"] == "CHUNK":
            self.text += event["content"]
            self.chunks += 1
        elif event["type"] in ("END", "ERROR"):
            self.last = event
        return self.last is None

    def check(self, reason="stop"):
        assert self.last["type"] == "END" and self.last["finish_reason"] == reason, self.last
        assert self.text == self.last["full_content"], (self.text, self.last)


def begin(**body):
    return requests.post(f"{BASE}/chat/stream", json={"message": "Tell me something", **body}, timeout=10).json()["stream_id"]


def stop(id):
    assert requests.delete(f"{BASE}/chat/stream/{id}", timeout=10).status_code == 200


def reads(id):
    return int(requests.get(f"{BASE}/reads/{id}", timeout=10).text)


def with_sseclient(id, answer, at_five):
    """sseclient-py reads one response; coming back is its user's."""
    while answer.last is None:
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": answer.seen} if answer.seen else {})
        response = requests.get(f"{BASE}/chat/stream/{id}", headers=headers, stream=True, timeout=30)
        try:
            for event in sseclient.SSEClient(response).events():
                # What stands before a cut is handed on as it is; a whole event has an id.
                if not event.id:
                    continue
                answer.seen = event.id
                answer.take(json.loads(event.data))
                if answer.chunks == 5 and at_five:
                    at_five, _ = None, at_five()
        except requests.exceptions.RequestException:
            pass
    end = requests.get(f"{BASE}/chat/stream/{id}", headers={"Last-Event-ID": answer.seen}, timeout=10)
    assert end.status_code == 204, end.status_code


def with_requests_sse(id, answer, at_five):
    with requests_sse.EventSource(f"{BASE}/chat/stream/{id}", timeout=30, max_connect_retry=5) as source:
        while answer.last is None:
            try:
                for event in source:
                    answer.take(json.loads(event.data))
                    if answer.chunks == 5 and at_five:
                        at_five, _ = None, at_five()
                    if answer.last:
                        break
            except (requests.exceptions.RequestException, ConnectionError):
                source.connect()


async def with_aiohttp(id, answer, at_five):
    session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60))
    async with session, aiohttp_sse.EventSource(f"{BASE}/chat/stream/{id}", session=session) as source:
        while answer.last is None:
            try:
                async for event in source:
                    answer.take(json.loads(event.data))
                    if answer.chunks == 5 and at_five:
                        at_five, _ = None, await asyncio.to_thread(at_five)
                    if answer.last:
                        break
            except aiohttp.ClientError:
                await source.connect(5)


def request(answer, id, body):
    return {"type": "resume", "stream_id": id, "last_event_id": answer.seen} if id else {"type": "chat", "message": "x", **body}


async def with_websockets(body, name):
    answer, id, connections = Answer(), None, 0
    while answer.last is None and connections < 5:
        connections += 1
        try:
            async with websockets.asyncio.client.connect(f"{BASE.replace('http', 'ws')}/chat/ws?cut={name}") as socket:
                await socket.send(json.dumps(request(answer, id, body)))
                async for text in socket:
                    event = json.loads(text)
                    id, answer.seen = event["stream_id"], event["id"]
                    if not answer.take(event):
                        break
                    if answer.chunks == 5 and body:
                        await socket.send(json.dumps({"type": "stop", "stream_id": id}))
        except websockets.exceptions.ConnectionClosed:
            pass
    return answer, connections


def with_websocket_client(body, name):
    answer, id, connections = Answer(), None, 0
    while answer.last is None and connections < 5:
        connections += 1
        socket = websocket.create_connection(f"{BASE.replace('http', 'ws')}/chat/ws?cut={name}", timeout=30)
        try:
            socket.send(json.dumps(request(answer, id, body)))
            while True:
                event = json.loads(socket.recv())
                id, answer.seen = event["stream_id"], event["id"]
                if not answer.take(event):
                    break
                if answer.chunks == 5 and body:
                    socket.send(json.dumps({"type": "stop", "stream_id": id}))
        except (websocket.WebSocketException, ConnectionError, json.JSONDecodeError):
            pass
        finally:
            socket.close()
    return answer, connections


def over_events(read, is_to_stop):
    id, answer = begin(**({"model": "sim-long"} if is_to_stop else {})), Answer()
    outcome = read(id, answer, (lambda: stop(id)) if is_to_stop else None)
    if asyncio.iscoroutine(outcome):
        asyncio.run(outcome)
    answer.check("cancelled" if is_to_stop else "stop")
    if not is_to_stop:
        assert reads(id) >= 4, f"it was cut three times and read {reads(id)} times"


def over_socket(read, is_to_stop):
    outcome = read({"model": "sim-long"} if is_to_stop else {}, f"{read.__name__}-{is_to_stop}")
    answer, connections = asyncio.run(outcome) if asyncio.iscoroutine(outcome) else outcome
    answer.check("cancelled" if is_to_stop else "stop")
    assert connections >= 2, "it was cut"


failures = 0
for name, read, over in [
    ("sseclient-py", with_sseclient, over_events),
    ("requests-sse", with_requests_sse, over_events),
    ("aiohttp-sse-client", with_aiohttp, over_events),
    ("websockets", with_websockets, over_socket),
    ("websocket-client", with_websocket_client, over_socket),
]:
    for is_to_stop in (False, True):
        claim = f"{name} {'is stopped' if is_to_stop else 'reads through cuts to the end'}"
        try:
            over(read, is_to_stop)
            print(f"ok      {claim}", flush=True)
        except Exception as error:
            failures += 1
            print(f"FAILED  {claim}: {type(error).__name__}: {error}", flush=True)
sys.exit(bool(failures))
