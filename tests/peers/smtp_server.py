"""A mail server (aiosmtpd) that keeps what it takes, read by Python's own parser and verified by dkimpy.

Arguments: a folder, a port, a mode, and the password of the user `shop`. The mode is `none`, `starttls`,
`login` (STARTTLS without AUTH PLAIN) or `implicit`. Mail n becomes raw-n.eml and mail-n.json. The folder's
`answers` holds what the next mails are answered, a line each, first come first served; `hang up` says nothing
and closes. Without one, a mail is taken. `dns.txt` is what dkimpy finds when it asks for a key.
"""

import asyncio
import email
import email.policy
import json
import os
import ssl
import sys

import dkim
from aiosmtpd.smtp import SMTP, AuthResult, LoginPassword

folder, port, mode, password = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
count = 0


def next_answer():
    try:
        with open(f"{folder}/answers") as file:
            lines = file.read().splitlines()
    except FileNotFoundError:
        lines = []
    if not lines:
        return "250 2.0.0 queued"
    with open(f"{folder}/answers", "w") as file:
        file.write("\n".join(lines[1:]))
    return lines[0]


def verified(raw):
    if not os.path.exists(f"{folder}/dns.txt"):
        return None
    with open(f"{folder}/dns.txt", "rb") as file:
        record = file.read()
    return dkim.verify(raw, dnsfunc=lambda name, timeout=5: record)


def described(part):
    content = None if part.is_multipart() else part.get_payload(decode=True).decode("latin-1")
    text = part.get_content() if part.get_content_maintype() == "text" else None
    return [part.get_content_type(), part.get_content_disposition(), part.get_filename(), part["content-id"], content, text]


class Handler:
    async def handle_DATA(self, server, session, envelope):
        global count
        count += 1
        raw = envelope.original_content
        answer = next_answer()
        with open(f"{folder}/raw-{count}.eml", "wb") as file:
            file.write(raw)
        mail = email.message_from_bytes(raw, policy=email.policy.default)
        seen = {
            "answer": answer,
            "from": envelope.mail_from,
            "to": envelope.rcpt_tos,
            "utf8": envelope.smtp_utf8,
            "authenticated": session.authenticated,
            "tls": session.ssl is not None or mode == "implicit",
            "headers": [[name, str(value)] for name, value in mail.items()],
            "defects": [str(defect) for part in mail.walk() for defect in part.defects],
            "parts": [described(part) for part in mail.walk()],
            "dkim": verified(raw),
        }
        with open(f"{folder}/tmp", "w") as file:
            json.dump(seen, file)
        os.rename(f"{folder}/tmp", f"{folder}/mail-{count}.json")
        if answer == "hang up":
            server.transport.abort()
        return answer


def authenticate(server, session, envelope, mechanism, data):
    fine = isinstance(data, LoginPassword) and data.login == b"shop" and data.password == password.encode()
    return AuthResult(success=fine, handled=False)


async def main():
    context = None
    if mode != "none":
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(f"{folder}/cert.pem", f"{folder}/key.pem")

    def make():
        return SMTP(
            Handler(),
            enable_SMTPUTF8=True,
            hostname="test",
            authenticator=authenticate,
            tls_context=context if mode in ("starttls", "login") else None,
            auth_require_tls=mode != "implicit",
            auth_exclude_mechanism=["PLAIN"] if mode == "login" else [],
        )

    loop = asyncio.get_running_loop()
    server = await loop.create_server(make, "127.0.0.1", port, ssl=context if mode == "implicit" else None)
    await server.serve_forever()


asyncio.run(main())
