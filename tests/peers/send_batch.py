"""Sends a batch through the generated client, twice, and prints both answers: send_batch.py URL KEY"""

import json
import sys

from angarium_client import AuthenticatedClient
from angarium_client.api.messages import create_messages, get_message
from angarium_client.models import BatchAnswer, NewBatch, NewContent, NewMessage, PriorityName, Problem

url, key = sys.argv[1:]
client = AuthenticatedClient(base_url=url, token=key)
batch = NewBatch(
    messages=[
        NewMessage(
            channel="webhook",
            content=NewContent(payload={"number": number}),
            idempotency_key=f"generated-{number}",
            priority=PriorityName.HIGH,
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
shown = get_message.sync(answers[0][0]["message"]["id"], client=client)
missing = get_message.sync("msg_0", client=client)
assert isinstance(missing, Problem), missing
print(json.dumps({"answers": answers, "reference": shown.reference, "missing": missing.code}))
