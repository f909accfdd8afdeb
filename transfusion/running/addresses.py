"""Reads addresses of the form HOST:PORT."""

import ipaddress
import re

from transfusion.errors import UsageError

# Resolvers take labels of at most 63 letters. Python's own codec fails on others before it asks a resolver.
_NAME = re.compile(r"(?=.{1,253}$)[A-Za-z0-9_]([A-Za-z0-9_-]{0,62})(\.[A-Za-z0-9_-]{1,63})*\.?")
_PORT = re.compile(r"[0-9]{1,5}")


def parse_address(flag: str, address: str) -> tuple[str, int]:
    """Host and port of 'HOST:PORT'. An address of version 6 must stand in brackets, which the result leaves out.

    Raises:
      UsageError: naming the `flag`, if it is not of that form.
    """
    host, _, port = address.rpartition(":")
    if not _NAME.fullmatch(host) and not (host.startswith("[") and host.endswith("]") and _is_ipv6(host[1:-1])):
        raise UsageError(f"{flag}: {address!r} is not of the form HOST:PORT")
    if not _PORT.fullmatch(port) or not 1 <= int(port) <= 65535:
        raise UsageError(f"{flag}: {address!r} is not of the form HOST:PORT with a port from 1 to 65535")
    return host.strip("[]"), int(port)


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True
