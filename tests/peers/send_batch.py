"""Sends a batch through the generated client, twice, and prints both answers: send_batch.py URL KEY"""

import json
import sys

from angarium_client import AuthenticatedClient
from angarium_client.api.audit import list_audit
from angarium_client.api.connections import list_connections
from angarium_client.api.events import list_all_events
from angarium_client.api.messages import (
    create_messages,
    get_decision,
    get_message,
    list_attempts,
    list_events,
    list_messages,
)
from angarium_client.api.providers import list_providers
from angarium_client.api.routes import list_routes
from angarium_client.api.settings import get_settings
from angarium_client.api.statistics import get_provider_health, get_stats
from angarium_client.models import BatchAnswer, NewBatch, NewContent, NewMessage, Priority, Problem

url, key = sys.argv[1:]
client = AuthenticatedClient(base_url=url, token=key)
batch = NewBatch(
    messages=[
        NewMessage(
            channel="webhook",
            content=NewContent(payload={"number": number}),
            idempotency_key=f"generated-{number}",
            priority=Priority.HIGH,
            reference=f"batch:{number}",
        )
        for number in range(2)
    ]
    + [NewMessage(channel="webhook", content=NewContent(), idempotency_key="")]
)
answers = []
for _ in range(2):
    answer = create_messages.sync(client=client, body=batch)
    assert isinstance(answer, BatchAnswer), answer
    answers.append(answer.to_dict()["data"])
# What the gateway answers is what the client reads: null where nothing is, too.
first = answers[0][0]["message"]["id"]
lists = [list_audit, list_connections, list_all_events, list_messages, list_providers, list_routes]
lists += [get_settings, get_provider_health, get_stats]
for answer in [it.sync(client=client) for it in lists] + [
    it.sync(first, client=client) for it in (get_decision, list_attempts, list_events)
]:
    assert answer is not None and not isinstance(answer, Problem), answer
shown = get_message.sync(first, client=client)
missing = get_message.sync("msg_0", client=client)
assert isinstance(missing, Problem), missing
print(json.dumps({"answers": answers, "reference": shown.reference, "missing": missing.code}))
