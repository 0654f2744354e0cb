"""A TCP proxy between a client and a server that counts what passes and cuts connections at random places."""

import random
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

PIECE_BYTES = 2**16


class CuttingProxy:
    """Cuts `num_cuts` connections, at places that `seed` draws, as soon as so many bytes have passed in all."""

    def __init__(self, target: str, *, seed: int, num_cuts: int, num_bytes: int) -> None:
        parts = urlsplit(target)
        self._target = (parts.hostname, parts.port)
        rng = random.Random(seed)
        # Of the transfer: not in its first twentieth, nor when it is nearly over.
        self._places = sorted(rng.uniform(0.05, 0.9) * num_bytes for _ in range(num_cuts))
        self._lock = threading.Lock()
        self.num_bytes_down = self.num_bytes_up = self.num_cut = 0
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        self._sockets: set[socket.socket] = set()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._server.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(self._target)
            except OSError:
                near.close()
                continue
            with self._lock:
                self._sockets |= {near, far}
            for source, sink, is_down in ((near, far, False), (far, near, True)):
                thread = threading.Thread(target=self._forward, args=(source, sink, is_down))
                self._threads.append(thread)
                thread.start()

    def _forward(self, source: socket.socket, sink: socket.socket, is_down: bool) -> None:
        with suppress(OSError):
            while piece := source.recv(PIECE_BYTES):
                sink.sendall(piece)
                if self._counts_as_cut(len(piece), is_down):
                    # With this, closing sends RST in place of FIN.
                    for end in (sink, source):
                        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    break
        for end in (sink, source):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for end in (sink, source):
            end.close()

    def _counts_as_cut(self, num_bytes: int, is_down: bool) -> bool:
        with self._lock:
            if is_down:
                self.num_bytes_down += num_bytes
            else:
                self.num_bytes_up += num_bytes
            if self._places and self.num_bytes_down + self.num_bytes_up > self._places[0]:
                self._places.pop(0)
                self.num_cut += 1
                return True
            return False

    def close(self) -> None:
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)  # wakes accept up
        self._server.close()
        with self._lock:
            sockets = list(self._sockets)
        for one in sockets:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()


@contextmanager
def cutting_proxy(
    target: str, *, seed: int = 0, num_cuts: int = 0, num_bytes: int = 0
) -> Iterator[CuttingProxy]:
    proxy = CuttingProxy(target, seed=seed, num_cuts=num_cuts, num_bytes=num_bytes)
    try:
        yield proxy
    finally:
        proxy.close()
