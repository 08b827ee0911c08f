"""The server's side of TLS, for a proxy before a server that has none of its own."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import threading

__all__ = ["TlsSocket", "accept_tls"]

#: What a program that wants TLS says first, and what it is answered.
_SSL_REQUEST = struct.pack("!ii", 8, 80_877_103)
_YES = b"S"
_CHUNK = 65_536


def accept_tls(client: socket.socket, context: ssl.SSLContext, *, patience: float = 10.0) -> TlsSocket:
    """Answer a program that asks for TLS, and agree on it.

    Raises:
        OSError: it does not ask for TLS, or does not like our certificate.
    """
    client.settimeout(patience)
    first = b""
    while len(first) < len(_SSL_REQUEST):
        data = client.recv(len(_SSL_REQUEST) - len(first))
        if not data:
            raise ConnectionError("it has gone")
        first += data
    if first != _SSL_REQUEST:
        raise ConnectionError("it does not ask for TLS")
    client.sendall(_YES)
    secured = TlsSocket(client, context)
    client.settimeout(None)
    return secured


class TlsSocket:
    """A connection that one thread reads while another writes, which `ssl.SSLSocket` is not made for."""

    def __init__(self, raw: socket.socket, context: ssl.SSLContext) -> None:
        self._raw = raw
        self._received, self._to_send = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._received, self._to_send, server_side=True)
        self._state, self._sending = threading.Lock(), threading.Lock()
        self._shake_hands()

    def recv(self, size: int) -> bytes:
        """Return what was said, at most ``size`` bytes; nothing at the end."""
        while True:
            with self._state:
                try:
                    return self._tls.read(size)
                except ssl.SSLWantReadError:
                    pass
                except ssl.SSLError:
                    return b""
            self._flush()
            data = self._raw.recv(_CHUNK)
            if not data:
                return b""
            with self._state:
                self._received.write(data)

    def sendall(self, data: bytes) -> None:
        """Say all of it."""
        with self._sending:
            with self._state:
                self._tls.write(data)
                ready = self._to_send.read()
            self._raw.sendall(ready)

    def shutdown(self, how: int) -> None:
        """End the connection below."""
        self._raw.shutdown(how)

    def close(self) -> None:
        """Close the connection below."""
        self._raw.close()

    def _flush(self) -> None:
        with self._sending:
            with self._state:
                ready = self._to_send.read()
            if ready:
                self._raw.sendall(ready)

    def _shake_hands(self) -> None:
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self._flush()
                data = self._raw.recv(_CHUNK)
                if not data:
                    raise ConnectionError("it has gone") from None
                self._received.write(data)
            except ssl.SSLError:
                # What is wrong is said to the other side, too.
                with contextlib.suppress(OSError):
                    self._flush()
                raise
            else:
                self._flush()
                return
