"""Signs a callback as Twilio does, by the official library's RequestValidator.

Reads {"token", "url", "params", "algorithm"} on standard input; prints the signature in JSON.
"""

import json
import sys

from twilio.request_validator import RequestValidator

request = json.load(sys.stdin)
signature = RequestValidator(request["token"]).compute_signature(
    request["url"], request["params"], request.get("algorithm")
)
print(json.dumps(signature))
