"""A proxy before a server, for tests of what networks do: connections that hang, break, or swallow replies."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from types import TracebackType
from typing import TypeAlias

from psycopg.conninfo import conninfo_to_dict, make_conninfo
from typing_extensions import Self

from pgqrs_core.testing.tls import TlsSocket, accept_tls

__all__ = ["Proxy"]

_CHUNK = 65_536

_Side: TypeAlias = "socket.socket | TlsSocket"


class Proxy:
    """Passes bytes on, until it is told not to. What it is told holds for the connections that are open at that moment.

    Args:
        dsn: the server, by TCP or by the folder of its socket.
        tls: speak TLS with programs, by this certificate, and nothing else. The server sees plain text.

    Use it as a context manager, and connect to `dsn`.
    """

    def __init__(self, dsn: str, *, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self._parameters = conninfo_to_dict(dsn)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._pairs: list[_Pair] = []
        self._lock = threading.Lock()
        #: Seconds by which everything is late.
        self.delay = 0.0
        #: Whether new connections are refused.
        self.refuses = False
        threading.Thread(target=self._accept, name="pgqrs-proxy", daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def dsn(self) -> str:
        """The server through this proxy."""
        port = self._listener.getsockname()[1]
        mode = "disable" if self._tls is None else "require"
        return make_conninfo(
            **{**self._parameters, "host": "127.0.0.1", "port": port, "sslmode": mode, "gssencmode": "disable"}
        )

    @property
    def connections(self) -> int:
        """How many connections pass bytes."""
        with self._lock:
            return sum(1 for pair in self._pairs if not (pair.over.is_set() or pair.frozen))

    def freeze(self, *, listeners: bool = False) -> int:
        """Pass nothing on any more, in either direction, while both sides believe to be connected.

        Args:
            listeners: only for connections on which the program has begun to listen, as a firewall forgets idle ones.

        Returns:
            How many connections that were.
        """
        chosen = [pair for pair in self._open() if pair.listens or not listeners]
        for pair in chosen:
            pair.frozen = True
        return len(chosen)

    def swallow_replies(self) -> None:
        """Pass on what the program says, but not what the server answers."""
        for pair in self._open():
            pair.is_mute = True

    def cut(self) -> None:
        """Break all connections."""
        for pair in self._open():
            pair.close()

    def close(self) -> None:
        """End everything."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def _open(self) -> list[_Pair]:
        with self._lock:
            self._pairs = [pair for pair in self._pairs if not pair.over.is_set()]
            return list(self._pairs)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self.refuses:
                client.close()
            else:
                # Not here: the others need not wait until this one has agreed on anything.
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, accepted: socket.socket) -> None:
        try:
            client = accepted if self._tls is None else accept_tls(accepted, self._tls)
            server = self._connect()
        except OSError:
            accepted.close()
            return
        pair = _Pair(client, server)
        with self._lock:
            self._pairs.append(pair)
        directions: tuple[tuple[_Side, _Side, bool], ...] = ((client, server, False), (server, client, True))
        for source, sink, replies in directions:
            threading.Thread(target=self._pass_on, args=(pair, source, sink, replies), daemon=True).start()

    def _connect(self) -> socket.socket:
        host, port = str(self._parameters.get("host") or "localhost"), int(self._parameters.get("port") or 5432)
        if not host.startswith("/"):
            return socket.create_connection((host, port))
        server = socket.socket(socket.AF_UNIX)
        server.connect(f"{host}/.s.PGSQL.{port}")
        return server

    def _pass_on(self, pair: _Pair, source: _Side, sink: _Side, replies: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(_CHUNK):
                if self.delay:
                    time.sleep(self.delay)
                if not replies and b"listen " in data:
                    pair.listens = True
                if pair.frozen:
                    # Not a word of it, nor that it has ended.
                    pair.over.wait()
                    return
                if not (replies and pair.is_mute):
                    sink.sendall(data)
        if not pair.frozen:
            pair.close()


class _Pair:
    """A connection of a program, and the one to the server that belongs to it."""

    def __init__(self, client: _Side, server: socket.socket) -> None:
        self._sockets: tuple[_Side, ...] = (client, server)
        self.frozen = False
        self.is_mute = False
        #: Whether the program has sent a LISTEN.
        self.listens = False
        self.over = threading.Event()

    def close(self) -> None:
        """Break both."""
        self.over.set()
        for each in self._sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
