"""The Python client: numpy in, numpy out, no torch.

Module                  What is in it
`client`                `Client`, for threads
`async_client`          `AsyncClient`, for asyncio
`connection`            `Connection`: address, TLS, token, load balancing, message size
`transport_security`    `TransportSecurity`: certificates and keys from PEM files
`retry`                 `RetryPolicy`: what is repeated, how often and after which time

Both clients are thin: what a call sends and how its answer is read is in `calls`, and what surrounds every call, its
id, deadline, authorisation, repetition and errors, in `invocation`.
"""

from pathlens.client.async_client import AsyncClient
from pathlens.client.client import Client
from pathlens.client.connection import Connection
from pathlens.client.retry import RetryPolicy
from pathlens.client.transport_security import TransportSecurity

__all__ = ["AsyncClient", "Client", "Connection", "RetryPolicy", "TransportSecurity"]
