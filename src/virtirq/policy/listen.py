"""Where metrics are served: ``address:port``."""

from __future__ import annotations

import re
from typing import Final

from virtirq.values import pattern

_FORM: Final = pattern(r"(\[[^\[\]]+\]|[^\[\]:]*):(\d{1,5})", re.ASCII)
_ZONE: Final = pattern(r"[!-$&-.0-9;-~]{1,15}", re.ASCII)
"""An interface of Linux (net/core/dev.c, dev_valid_name()), as people call them."""
_NAME: Final = pattern(r"(?!.*\d$)[A-Za-z0-9-]{1,63}(\.[A-Za-z0-9-]{1,63})*", re.ASCII)


def parse_listen(text: str) -> tuple[str, int]:
    """Host and port of ``127.0.0.1:9191``, ``[::1]:9191``, ``localhost:9191`` or ``:9191``.

    The host is an address without brackets, a name, or empty for every address of this host.
    Raises ValueError.
    """
    match = _FORM.fullmatch(text)
    if match is None:
        raise ValueError(f'{_shown(text)} is not an address: write it as "127.0.0.1:9191"')
    host, port = match[1], int(match[2])
    if not 0 < port < 65536:
        raise ValueError(f"{_shown(text)}: a port is a number from 1 to 65535")
    if host.startswith("["):
        host = host[1:-1]
        _, percent, zone = host.partition("%")
        if not _is_address(host, 6) or (percent and not _ZONE.fullmatch(zone)):
            raise ValueError(f'{_shown(text)}: write an IPv6 address as "[::1]:9191"')
    elif host and not _is_address(host, 4) and not _NAME.fullmatch(host):
        raise ValueError(f"{_shown(text)}: {_shown(host)} is no IPv4 address and no host name")
    return host, port


def _is_address(host: str, version: int) -> bool:
    from ipaddress import ip_address  # every verb reads the configuration, few have this in it

    try:
        return ip_address(host).version == version
    except ValueError:
        return False


def _shown(text: str) -> str:
    return repr(text[:60])
