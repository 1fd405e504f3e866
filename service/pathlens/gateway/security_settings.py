"""What an operator may choose about who reaches the gateway."""

from typing import Literal

from pydantic import ValidationInfo, field_validator

from pathlens.settings import FilePath, settings


@settings
class TlsSettings:
    """Files, in PEM, that protect the gRPC port; they are looked at again with every new connection.

    Raises:
        ServerStartError: A file is not named.
    """

    certificate: FilePath
    """Certificate of the gateway, followed by those between it and the authority that callers trust."""
    private_key: FilePath
    """Key of the certificate, not encrypted."""
    client_ca: FilePath | None = None
    """Authorities whose certificates callers have to show (mutual TLS); without it, callers show none."""


@settings
class AuthorisationSettings:
    """Who may call.

    Raises:
        ServerStartError: A token is asked for and there is no file of tokens.
    """

    token_file: FilePath | None = None
    """Tokens of the callers, one `NAME:TOKEN` or `NAME:sha256=HEX` a line; without it, everyone may call."""
    health: Literal["open", "token"] = "open"
    """Whether the health service asks for a token, too. The probes of Kubernetes cannot send one."""
    reflection: Literal["open", "token", "off"] = "open"
    """Whether the reflection service asks for a token, too, or is not offered. It tells what protos/ tells."""

    @field_validator("health", "reflection")
    @classmethod
    def _needs_tokens(cls, choice: str, info: ValidationInfo) -> str:
        # A token_file that is wrong in itself is reported, and missing here.
        if choice == "token" and "token_file" in info.data and info.data["token_file"] is None:
            raise ValueError("is 'token' and there is no token_file: name one, or choose 'open'")
        return choice
