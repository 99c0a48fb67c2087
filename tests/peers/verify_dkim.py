"""Verifies a mail's DKIM signature with dkimpy: the mail comes from standard input, the published key is the argument.

Prints `pass` or `fail`.
"""

import sys

import dkim

record = sys.argv[1].encode()
print("pass" if dkim.verify(sys.stdin.buffer.read(), dnsfunc=lambda name, timeout=5: record) else "fail")
