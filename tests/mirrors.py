"""Answers for https addresses from a web server on this machine."""

import http.server

CUT = b"cut the connection"


class Mirrors:
    """What each address answers.

    Attributes:
        asked: the addresses that were opened, in order.
        pauses: the pauses before new attempts, in seconds; none of them is really made.
    """

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.pauses: list[float] = []
        self._answers: dict[str, list[bytes | int]] = {}

    def serve(self, url: str, *answers: bytes | int) -> str:
        """Set the answers to the first, second, … request: a body, a status, or ``CUT + body``. The last one is repeated."""
        self._answers[url] = list(answers)
        return url

    def answer(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        """Answer one request."""
        url = f"https:/{handler.path}"
        self.asked.append(url)
        answers = self._answers.get(url, [404])
        found = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(found, int):
            handler.send_error(found)
            return
        body = found.removeprefix(CUT)
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body[: len(body) // 2] if found.startswith(CUT) else body)
