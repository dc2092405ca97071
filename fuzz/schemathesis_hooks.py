"""What the OpenAPI document cannot say, so that a request that is meant to be good is good."""

import secrets
import uuid
from datetime import datetime

import schemathesis

NOW = datetime(2026, 11, 22, 23, 17, 31).isoformat()


@schemathesis.hook
def before_call(context, case, kwargs):
    # The service runs with 127.0.0.1 as its trusted proxy. Wrong keys are part of the test, and twenty of them would shut
    # the address of the test out. (Hypothesis makes `random` give the same each time.)
    if not case.headers:
        case.headers = {}
    case.headers["X-Forwarded-For"] = ".".join(str(1 + secrets.randbelow(254)) for _ in range(4))
    if case.meta is None or not case.meta.generation.mode.is_positive:
        return
    # The same key with another body is refused, and rightly: a key of its own for each request.
    for name in list(case.headers):
        if name.lower() == "idempotency-key":
            case.headers[name] = uuid.uuid4().hex
    body = case.body
    if isinstance(body, dict) and body.get("conversation_id") and body.get("conversation_history"):
        # One or the other.
        del body["conversation_id"]
    messages = body.get("messages") if isinstance(body, dict) else body
    for message in messages if isinstance(messages, list) else []:
        # There is no format for ISO 8601 with an offset or without.
        if isinstance(message, dict) and isinstance(message.get("timestamp"), str):
            message["timestamp"] = NOW
