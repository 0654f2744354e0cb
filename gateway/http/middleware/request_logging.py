"""ASGI wrapper that records every HTTP request in the log and the metrics."""

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.serving.request_log import RequestLog, RequestRecord


class RequestLogMiddleware:
    def __init__(self, app: ASGIApp, request_log: RequestLog) -> None:
        self._app = app
        self._log = request_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        client = scope.get("client") or ("", 0)
        record = RequestRecord(
            "http",
            "",
            peer=f"{client[0]}:{client[1]}",
            traceparent=Headers(scope=scope).get("traceparent", ""),
        )

        async def send_and_record(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.code = str(message["status"])
            await send(message)

        with self._log.recording(record):
            # Paths that nobody serves would be a series each.
            record.method = "(other)"
            try:
                await self._app(scope, receive, send_and_record)
            finally:
                # The router has found by now which route it is.
                if (route := scope.get("route")) is not None:
                    record.method = f"{scope['method']} {route.path}"
                elif not record.code:
                    record.code = "499"
