"""The client that openapi-python-client makes."""

import sys

from chat_gpt_clone_ai_service_client import Client
from chat_gpt_clone_ai_service_client.api.chat import chat
from chat_gpt_clone_ai_service_client.api.streams import read_stream, start_stream
from chat_gpt_clone_ai_service_client.models import ChatRequest, ChatResponse, ErrorBody

client = Client(base_url=sys.argv[1])
answer = chat.sync(client=client, body=ChatRequest(message="Hello!"))
assert isinstance(answer, ChatResponse) and answer.response, answer
refused = chat.sync_detailed(client=client, body=ChatRequest(message="x", model="sim-error-404"))
assert isinstance(refused.parsed, ErrorBody) and refused.parsed.code == "model_not_found", refused
started = start_stream.sync(client=client, body=ChatRequest(message="Hello!"))
events = read_stream.sync_detailed(started.stream_id, client=client)
assert events.status_code == 200 and b'"type":"END"' in events.content, events
text = events.parsed if isinstance(events.parsed, str) else events.content.decode()
assert text.startswith("retry: 1000\nevent: chunk\n"), text
print("ok      openapi-python-client")
