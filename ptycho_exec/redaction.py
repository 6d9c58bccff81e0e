"""Credentials in addresses, which are shown to nobody."""

from __future__ import annotations

import re
from typing import Any

# `scheme://user:password@`, also when the password holds an unescaped `@` or `/`, and without a scheme.
_USERINFO = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*:/{1,2}|//)"
    r"(?:[^/?#\s\"']*@|[^/?#\s\"':@]+:(?!\d{1,5}(?:[/?#\s\"']|$))[^\s\"']*@)"
)
_BARE_USERINFO = re.compile(r"(?<![\w/*])[\w.%+-]+:[^\s/@:\"']+@(?=[\w.-])")
_QUERY = re.compile(
    r"(?i)(?P<key>(?:^|[?&;#\s])[^=&\s?]*(?:token|key|secret|password|passwd|pwd|sig|auth|credential)[^=&\s]*=)"
    r"[^&\s#\"']+"
)


def redact(value: Any) -> Any:
    """Hide credentials in addresses: user information and secret-looking query values become `***`."""
    if not isinstance(value, str):
        return value
    value = _BARE_USERINFO.sub("***@", _USERINFO.sub(r"\g<scheme>***@", value))
    return _QUERY.sub(r"\g<key>***", value)
