"""What an operator should know before others can reach the gateway."""

import ipaddress
import os
import stat
from pathlib import Path

from pathlens.gateway.security_settings import AuthorisationSettings, TlsSettings


def exposure_warnings(host: str, tls: TlsSettings | None, authorisation: AuthorisationSettings) -> list[str]:
    """Say what stands open.

    A service may be meant so, behind a mesh or a proxy that encrypts and authorises; nothing is refused here.

    Args:
        host: Address that the gateway listens on.
        tls: The files of TLS; None without TLS.
        authorisation: Who may call.

    Returns:
        A sentence for each thing; none if all is well.
    """
    found = []
    if not _is_loopback(host) and tls is None:
        sent = "images and answers" if authorisation.token_file is None else "tokens, images and answers"
        found.append(
            f"The gateway listens on {host} without TLS: whoever is on the way can read and change {sent}. Set [tls],"
            " unless a mesh or a proxy encrypts."
        )
    if not _is_loopback(host) and authorisation.token_file is None and (tls is None or tls.client_ca is None):
        found.append(
            f"The gateway listens on {host} and answers to everyone who reaches it. Set authorisation.token_file or"
            " tls.client_ca, unless a mesh or a proxy authorises."
        )
    secrets = [authorisation.token_file, None if tls is None else tls.private_key]
    found += [
        f"{path} can be read by other users of this machine: make it readable for pathlens alone (chmod 600)."
        for path in secrets
        if path is not None and _is_readable_for_others(path)
    ]
    return found


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_readable_for_others(path: Path) -> bool:
    try:
        status = path.stat()
    except OSError:
        # Whoever reads it says so.
        return False
    # What root shares with a group is meant for its members: so Kubernetes mounts Secrets, and who is not root can read
    # them in no other way.
    shared = status.st_uid == 0 and os.geteuid() != 0
    return bool(status.st_mode & (stat.S_IROTH if shared else stat.S_IRGRP | stat.S_IROTH))
