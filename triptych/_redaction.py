"""Leaves passwords, keys and tokens in URLs out of messages, logs and traces."""

import re

_URL_SECRETS = (
    # A password with a slash, a question mark or a number sign that nobody escaped; a port is none.
    re.compile(r"(?<=://)[^\s/?#@:\[]*:(?!\d{0,5}(?:[/?#,'\"\s]|$))[^\s]*@"),
    re.compile(r"(?<=://)[^/?#\s'\"]*@"),
    # Where the scheme was forgotten.
    re.compile(r"(?<![\w/.@:-])[\w.+-]+:[^\s/@:'\"]+@"),
)
# In a query, as signed URLs and libpq have it, or in a string of libpq's: "password=...".
_NAMED_SECRETS = re.compile(
    r"(?i)((?:\b|[?&;_.-])(?:[\w.-]*[_.-])?(?:password|passwd|passphrase|secret|token|signature|credential|api_?key|"
    r"access_?key|sig)=|[?&](?:key|auth|pass|pwd|code)=)(?!\.\.\.)(?:'[^']*'|[^\s&#;,'\"]+)"
)


def without_passwords(text: str) -> str:
    """The text without the user and password of every URL in it, and without the secrets in their queries."""
    for pattern in _URL_SECRETS:
        text = pattern.sub("...@", text)
    return _NAMED_SECRETS.sub(r"\1...", text)
