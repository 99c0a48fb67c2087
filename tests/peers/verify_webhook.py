"""Verifies a webhook's signatures: `v1` by the official standardwebhooks library, `v1a` by PyNaCl.

Reads {"headers", "body", "secrets", "seeds"} on standard input: the endpoint's secrets (`whsec_…`), and the
seeds (`whsk_…`) whose public keys it knows. Prints {"v1": [bool], "v1a": [bool]}, one for each of them.
"""

import base64
import json
import sys

from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey
from standardwebhooks import Webhook, WebhookVerificationError

request = json.load(sys.stdin)
headers, body = request["headers"], request["body"]


def verifies(secret):
    try:
        Webhook(secret).verify(body, headers)
        return True
    except WebhookVerificationError:
        return False


def verifies_asymmetric(seed):
    public = SigningKey(base64.b64decode(seed.removeprefix("whsk_"))).verify_key
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.{body}".encode()
    for signature in headers.get("webhook-signature", "").split(" "):
        version, _, value = signature.partition(",")
        try:
            if version == "v1a" and public.verify(signed, base64.b64decode(value, validate=True)):
                return True
        except BadSignatureError:
            continue
    return False


print(json.dumps({
    "v1": [verifies(secret) for secret in request["secrets"]],
    "v1a": [verifies_asymmetric(seed) for seed in request["seeds"]],
}))
