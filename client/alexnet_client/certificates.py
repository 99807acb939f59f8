"""Expiry times and names of certificates. The only module that imports cryptography, and only when it is needed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from alexnet_client.connection import Tls


def expiries(tls: Tls) -> dict[str, float]:
    """Earliest expiry of the certificates in each file, Unix time, by "ca" and "tls".

    Empty without the package ``cryptography`` (``pip install 'alexnet-client[tls]'``). Unreadable files are omitted, because the
    connection reports them.
    """
    try:
        from cryptography import x509
    except ImportError:
        return {}
    found: dict[str, float] = {}
    for name, path in (("ca", tls.roots), ("tls", tls.certificate)):
        try:
            content = b"" if path is None else Path(path).read_bytes()
            certificates = x509.load_pem_x509_certificates(content) if content else []
        except (OSError, ValueError):
            continue
        if certificates:
            found[name] = min(each.not_valid_after_utc.timestamp() for each in certificates)
    return found


def dns_names(certificate: Path) -> list[str]:
    """DNS names in a server certificate; empty if there are none, or without the package ``cryptography``."""
    try:
        from cryptography import x509
    except ImportError:
        return []
    try:
        read = x509.load_pem_x509_certificate(certificate.read_bytes())
        names = read.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, ValueError, x509.ExtensionNotFound):
        return []
    return list(names.get_values_for_type(x509.DNSName))
