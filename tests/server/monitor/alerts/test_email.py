"""Mail as a real SMTP conversation: STARTTLS before anything is told, the login, what arrives."""

from __future__ import annotations

import base64
import socket
import ssl
import threading
from dataclasses import dataclass, field
from email import message_from_bytes, policy

import pytest

from common.errors import ConfigError
from server.monitor.alerts import channels
from server.monitor.alerts.channels import Email, Failure
from server.monitor.alerts.messages import Sender
from server.monitor.alerts.settings import EmailSettings


@dataclass
class MailServer:
    """Speaks just enough SMTP (RFC 5321, 3207, 4954) to take mail on loopback."""

    tls: ssl.SSLContext
    starttls: bool = True
    at_once: bool = False
    """TLS from the first byte, as on port 465."""
    answers: dict[str, str] = field(default_factory=dict)
    """Command -> what is answered in place of the usual."""
    mails: list[bytes] = field(default_factory=list)
    said: list[tuple[str, bool]] = field(default_factory=list)
    """(line, whether it was encrypted)."""

    def __post_init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.open: list[socket.socket] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection: socket.socket) -> None:
        try:
            if self.at_once:
                connection = self.tls.wrap_socket(connection, server_side=True)
            self.open.append(connection)
            self._converse(connection)
        except (OSError, ValueError):
            pass
        finally:
            connection.close()

    def _converse(self, connection: socket.socket) -> None:
        stream, encrypted = connection.makefile("rb"), self.at_once
        connection.sendall(b"220 mail.test ready\r\n")
        while line := stream.readline():
            text = line.decode().strip()
            self.said.append((text, encrypted))
            command = text.split()[0].upper()
            usual = "250 fine"
            if command == "EHLO":
                offered = "" if encrypted or not self.starttls else "250-STARTTLS\r\n"
                usual = f"250-mail.test\r\n{offered}250 AUTH PLAIN"
            elif command == "STARTTLS":
                usual = "220 go"
            elif command == "AUTH":
                usual = "235 welcome"
            elif command == "DATA":
                usual = "354 go on"
            elif command == "QUIT":
                usual = "221 bye"
            answer = self.answers.get(command, usual)
            connection.sendall(f"{answer}\r\n".encode())
            if command == "STARTTLS" and answer == usual:
                connection = self.tls.wrap_socket(connection, server_side=True)
                self.open.append(connection)
                stream, encrypted = connection.makefile("rb"), True
            elif command == "DATA" and answer == usual:
                lines = []
                while (part := stream.readline()) != b".\r\n":
                    lines.append(part.removeprefix(b"."))
                self.mails.append(b"".join(lines))
                connection.sendall(f"{self.answers.get('END', '250 taken')}\r\n".encode())

    def close(self) -> None:
        self.listener.close()
        for connection in self.open:
            connection.close()


@pytest.fixture
def mail_server(loopback_tls):
    made = []

    def make(**how):
        made.append(MailServer(loopback_tls.server, **how))
        return made[-1]

    yield make
    for server in made:
        server.close()


@pytest.fixture
def email(tmp_path, loopback_tls):
    def make(server, page="", **over):
        facts = {"server": "localhost", "port": server.port, "sender": "watch@centre.example"}
        facts |= {"recipients": ("anna@centre.example", "ben@centre.example")}
        facts |= {"ca_file": str(loopback_tls.authority)}
        return Email(EmailSettings(**facts | over), Sender("centre-a", page), tmp_path)

    return make


def test_a_mail_arrives_over_starttls_with_a_login(email, mail_server, notice, secret_file):
    server = mail_server()
    channel = email(
        server, page="https://watch.example.org", user="watch", password_file=secret_file("a pass-word")
    )
    assert channel.send(notice()) is None
    message = message_from_bytes(server.mails[0], policy=policy.default)
    assert message["From"] == "watch@centre.example"
    assert message["To"] == "anna@centre.example, ben@centre.example"
    assert message["Subject"] == "[fedcxr warning] Run pilot: north has not been heard of for 5 min"
    assert message["Message-ID"] == "<0123456789abcdef@centre.example>"
    assert message["Auto-Submitted"] == "auto-generated"
    text = message.get_content()
    for line in ("Centre    centre-a", "Site      north", "Page      https://watch.example.org/runs/pilot"):
        assert line in text
    plain = [line for line, encrypted in server.said if not encrypted]
    assert plain == ["ehlo centre.example", "STARTTLS"], "nothing but this goes unencrypted"
    login = next(line for line, _ in server.said if line.upper().startswith("AUTH"))
    assert base64.b64decode(login.split()[-1]).decode() == "\0watch\0a pass-word"
    assert [line for line, _ in server.said if line.startswith("rcpt")] == [
        "rcpt TO:<anna@centre.example>", "rcpt TO:<ben@centre.example>",
    ]  # fmt: skip


def test_a_mail_arrives_over_tls_from_the_first_byte(email, mail_server, notice):
    server = mail_server(at_once=True)
    assert email(server, security="tls").send(notice("over")) is None
    assert b"Over, after 5 min 00 s." in server.mails[0]


def test_a_relay_on_this_machine_may_go_without(email, mail_server, notice):
    server = mail_server(starttls=False)
    assert email(server, security="none").send(notice()) is None
    assert len(server.mails) == 1


def test_a_server_that_offers_no_starttls_gets_no_mail(email, mail_server, notice):
    server = mail_server(starttls=False)
    failure = email(server).send(notice())
    assert failure == Failure("it does not offer STARTTLS, or a way to log in")
    assert not server.mails
    assert {line.split()[0] for line, _ in server.said} <= {"ehlo", "QUIT", "quit"}


def test_a_certificate_that_nobody_vouches_for_gets_no_mail(email, mail_server, notice):
    server = mail_server()
    failure = email(server, ca_file="").send(notice())
    assert failure is not None and failure.why.startswith("its certificate is not trusted")
    assert not server.mails


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ({"RCPT": "550 unknown"}, Failure("it answered 550 to every recipient", final=True)),
        ({"RCPT": "450 greylisted"}, Failure("it answered 450 to every recipient")),
        ({"MAIL": "550 not you"}, Failure("it answered 550", final=True)),
        ({"MAIL": "451 later"}, Failure("it answered 451")),
        ({"END": "554 spam"}, Failure("it answered 554", final=True)),
        ({"END": "452 full"}, Failure("it answered 452")),
    ],
)
def test_what_a_server_answers_decides_whether_it_is_tried_again(
    email, mail_server, notice, answers, expected
):
    assert email(mail_server(answers=answers)).send(notice()) == expected


def test_a_wrong_password_is_tried_again_and_never_told(email, mail_server, notice, secret_file):
    server = mail_server(answers={"AUTH": "535 no"})
    failure = email(server, user="watch", password_file=secret_file("hidden-word")).send(notice())
    assert failure == Failure("it answered 535")


def test_a_server_that_says_nothing_costs_its_timeout(email, mail_server, notice, monkeypatch):
    monkeypatch.setattr(channels, "TIMEOUT", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        server = mail_server()
        server.port = silent.getsockname()[1]
        assert email(server).send(notice()) == Failure("it did not answer in time")


def test_a_line_break_in_what_is_told_adds_no_header(email, mail_server, notice):
    server = mail_server()
    assert email(server).send(notice(sentence="north\r\nBcc: eve@evil.example\r\n\r\nHello")) is None
    message = message_from_bytes(server.mails[0], policy=policy.default)
    assert message["Bcc"] is None
    assert "eve" not in " ".join(line for line, _ in server.said if line.startswith("rcpt"))


def test_a_password_file_must_be_there_and_hold_what_can_be_sent(email, mail_server, secret_file):
    with pytest.raises(ConfigError, match="ASCII only"):
        email(mail_server(), user="watch", password_file=secret_file("pässword"))
    with pytest.raises(ConfigError, match="cannot be read"):
        email(mail_server(), user="watch", password_file="absent")
