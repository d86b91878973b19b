"""A mail server on loopback that keeps what it is given."""

import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.message import EmailMessage


@dataclass(frozen=True, slots=True, kw_only=True)
class Mailbox:
    """Tell where the server listens, and the mails so far."""

    port: int
    mails: list[EmailMessage] = field(default_factory=list)


def content(mail: EmailMessage) -> str:
    """Return the text of a mail."""
    body = mail.get_body()
    return "" if body is None else str(body.get_content())


@contextmanager
def mail_server() -> Iterator[Mailbox]:
    """Serve as much of SMTP as one mail needs."""
    mails: list[EmailMessage] = []

    class Talk(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self._say(b"220 here")
            while line := self.rfile.readline():
                match line.split()[0].upper():
                    case b"DATA":
                        self._say(b"354 go on")
                        mails.append(
                            message_from_bytes(
                                b"".join(iter(self.rfile.readline, b".\r\n")), policy=policy.default
                            )
                        )
                        self._say(b"250 kept")
                    case b"QUIT":
                        self._say(b"221 bye")
                        break
                    case _:
                        self._say(b"250 here")

        def _say(self, line: bytes) -> None:
            self.wfile.write(line + b"\r\n")

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Talk) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield Mailbox(port=server.server_address[1], mails=mails)
        server.shutdown()
