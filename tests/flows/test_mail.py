"""Mail: what a server gets, and what its answers mean; against a real SMTP server on loopback."""

import asyncio
import email
import socket
import ssl
import threading
from email.policy import default

import pytest
import trustme
from aiosmtpd.smtp import SMTP, AuthResult
from pydantic import SecretStr

from shared.errors import AmbiguousWriteError, ConfigError, MappingError, RejectedError, TransientError
from shared.mail import Attachment, Delivery, Email, SmtpMailer, check_recipient
from shared.settings import Mail

LEAD = "lead@example.com"
MESSAGE = Email(
    to=(LEAD,),
    subject="[Concord] Fälle: 2 synced — 1 failed (test)",
    text="Grüße\n.leading dot\n",
    html="<p>Grüße</p>",
    attachments=(Attachment("failed-records.csv", b"record\r\n1\r\n", "text/csv"),),
    message_id="<run-1@concord.example.com>",
)


class Mailbox:
    """Keeps what arrives; answers recipients and messages as it was told to."""

    def __init__(self, recipients=None, answer="250 OK", drop=""):
        self.recipients = recipients or {}
        self.answer = answer
        self.drop = drop
        self.mails = []

    async def handle_RCPT(self, server, session, envelope, address, options):  # noqa: N802
        if self.drop == "RCPT":
            server.transport.abort()
        answer = self.recipients.get(address, "250 OK")
        if answer.startswith("250"):
            envelope.rcpt_tos.append(address)
        return answer

    async def handle_DATA(self, server, session, envelope):  # noqa: N802
        if self.answer.startswith("250"):
            self.mails.append(envelope)
            self.signed_in = session.authenticated
        if self.drop == "DATA":
            server.transport.abort()
        return self.answer


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture(scope="module")
def server_tls(authority):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


@pytest.fixture
def client_tls(authority):
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@pytest.fixture
def serve():
    """Start SMTP servers, each on a port of loopback that the system chose; all end with the test."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    servers = []

    def start(mailbox, ssl_context=None, **options):
        def protocol():
            return SMTP(mailbox, hostname="mail.test", loop=loop, **options)

        server = loop.create_server(protocol, "127.0.0.1", 0, ssl=ssl_context)
        servers.append(asyncio.run_coroutine_threadsafe(server, loop).result(10))
        return servers[-1].sockets[0].getsockname()[1]

    yield start
    asyncio.run_coroutine_threadsafe(_end(servers), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()


async def _end(servers):
    for server in servers:
        server.close()
        await server.wait_closed()
    sessions = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in sessions:
        task.cancel()
    await asyncio.gather(*sessions, return_exceptions=True)


def settings(port, security="none", **fields):
    return Mail(host="127.0.0.1", port=port, security=security, sender="concord@example.com", timeout_s=5, **fields)


def sign_in(server, session, envelope, mechanism, data):
    return AuthResult(success=data.login == b"concord" and data.password == b"right", handled=False)


def test_mail_arrives_as_it_was_written(serve):
    """Subject, both bodies, attachment and id survive the way, all in ASCII on the wire."""
    mailbox = Mailbox()

    delivery = SmtpMailer(settings(serve(mailbox))).send(MESSAGE)

    raw = mailbox.mails[0].content
    received = email.message_from_bytes(raw, policy=default)
    assert delivery == Delivery(accepted=(LEAD,))
    assert raw.isascii()
    assert received["Subject"] == MESSAGE.subject
    assert (received["From"], received["To"]) == ("concord@example.com", LEAD)
    assert received["Message-ID"] == "<run-1@concord.example.com>"
    assert received["Auto-Submitted"] == "auto-generated"
    assert received.get_body(("plain",)).get_content().replace("\r\n", "\n") == MESSAGE.text
    assert received.get_body(("html",)).get_content().strip() == MESSAGE.html
    (attachment,) = received.iter_attachments()
    assert (attachment.get_filename(), attachment.get_content_type()) == ("failed-records.csv", "text/csv")
    assert attachment.get_payload(decode=True) == b"record\r\n1\r\n"


def test_mail_goes_out_over_implicit_tls_signed_in(serve, server_tls, client_tls):
    """Implicit TLS: encrypted from the first byte, signed in with user and password."""
    mailbox = Mailbox()
    port = serve(mailbox, ssl_context=server_tls, authenticator=sign_in, auth_require_tls=False)

    SmtpMailer(settings(port, "implicit_tls", user="concord", password=SecretStr("right")), client_tls).send(MESSAGE)

    assert len(mailbox.mails) == 1
    assert mailbox.signed_in


def test_mail_goes_out_over_starttls_signed_in(serve, server_tls, client_tls):
    """STARTTLS: encrypted before user and password are sent."""
    mailbox = Mailbox()
    port = serve(mailbox, tls_context=server_tls, require_starttls=True, authenticator=sign_in, auth_required=True)

    SmtpMailer(settings(port, "starttls", user="concord", password=SecretStr("right")), client_tls).send(MESSAGE)

    assert len(mailbox.mails) == 1
    assert mailbox.signed_in


@pytest.mark.parametrize("security", ["implicit_tls", "starttls"])
def test_mail_does_not_trust_an_unknown_certificate(serve, server_tls, security):
    """A certificate that nobody vouches for ends the attempt before anything is sent."""
    mailbox = Mailbox()
    port = serve(mailbox, **{"ssl_context" if security == "implicit_tls" else "tls_context": server_tls})

    with pytest.raises(ConfigError, match=r"certificate is not valid for 127\.0\.0\.1"):
        SmtpMailer(settings(port, security), ssl.create_default_context()).send(MESSAGE)

    assert mailbox.mails == []


def test_mail_does_not_trust_a_certificate_of_another_host(serve, authority, client_tls):
    """A valid certificate of another host is none."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("mail.elsewhere.example").configure_cert(context)
    port = serve(Mailbox(), tls_context=context)

    with pytest.raises(ConfigError, match="certificate is not valid"):
        SmtpMailer(settings(port, "starttls"), client_tls).send(MESSAGE)


def test_mail_is_never_sent_unencrypted_when_starttls_is_asked(serve, client_tls):
    """A server, or someone between, that hides STARTTLS gets neither the password nor the mail."""
    mailbox = Mailbox()
    port = serve(mailbox, authenticator=sign_in, auth_require_tls=False)

    with pytest.raises(ConfigError, match="offers no STARTTLS"):
        SmtpMailer(settings(port, "starttls", user="concord", password=SecretStr("right")), client_tls).send(MESSAGE)

    assert mailbox.mails == []


def test_mail_implicit_tls_to_a_plain_server_names_the_setting(serve, client_tls):
    """A server that does not speak TLS at once means the wrong port or security."""
    with pytest.raises(ConfigError, match="MAIL__SECURITY"):
        SmtpMailer(settings(serve(Mailbox()), "implicit_tls"), client_tls).send(MESSAGE)


@pytest.mark.parametrize("password", ["wrong", "wröng"])
def test_mail_wrong_password_names_the_setting(serve, password):
    """A refused sign-in is the settings' fault, and no text shows the password."""
    port = serve(Mailbox(), authenticator=sign_in, auth_require_tls=False)

    with pytest.raises(ConfigError, match="MAIL__USER and MAIL__PASSWORD") as caught:
        SmtpMailer(settings(port, user="concord", password=SecretStr(password))).send(MESSAGE)

    assert password not in str(caught.value)
    assert caught.value.__cause__ is None


def test_mail_server_without_sign_in_names_the_setting(serve):
    """A user is set but the server cannot sign anyone in."""
    with pytest.raises(ConfigError, match="leave both empty"):
        SmtpMailer(settings(serve(Mailbox()), user="concord", password=SecretStr("right"))).send(MESSAGE)


def test_mail_some_recipients_refused_reaches_the_others(serve):
    """One bad address does not keep the mail from the others; the answer says who did not get it and why."""
    mailbox = Mailbox({"gone@example.com": "550 no such user", "busy@example.com": "450 greylisted"})
    mailer = SmtpMailer(settings(serve(mailbox)))
    to = (LEAD, "gone@example.com", "busy@example.com", LEAD)

    delivery = mailer.send(Email(to=to, subject="s", text="t"))

    assert delivery == Delivery((LEAD,), deferred=("busy@example.com",), refused=("gone@example.com",))
    assert mailbox.mails[0].rcpt_tos == [LEAD]


@pytest.mark.parametrize(
    ("answers", "error"),
    [
        pytest.param({LEAD: "550 5.1.1 <lead@example.com> unknown"}, RejectedError, id="unknown"),
        pytest.param({LEAD: "450 4.2.1 <lead@example.com> greylisted"}, TransientError, id="greylisted"),
        pytest.param({LEAD: "550 no", "b@example.com": "451 later"}, TransientError, id="one may still be reached"),
    ],
)
def test_mail_all_recipients_refused_says_whether_to_try_again(serve, answers, error):
    """Refused for good is rejected, refused for now is tried again; no address in the text."""
    mailbox = Mailbox(answers)

    with pytest.raises(error) as caught:
        SmtpMailer(settings(serve(mailbox))).send(Email(to=tuple(answers), subject="s", text="t"))

    assert "@" not in str(caught.value)
    assert mailbox.mails == []


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        pytest.param("554 5.7.1 looks like spam to lead@example.com", RejectedError, id="never"),
        pytest.param("452 4.3.1 disk full", TransientError, id="later"),
        pytest.param("552 too big", RejectedError, id="too big"),
    ],
)
def test_mail_refused_message_says_whether_to_try_again(serve, answer, error):
    """What the server says to the message itself decides."""
    with pytest.raises(error) as caught:
        SmtpMailer(settings(serve(Mailbox(answer=answer)))).send(MESSAGE)

    assert caught.value.status == int(answer[:3])
    assert "@" not in str(caught.value)


def test_mail_lost_answer_is_ambiguous(serve):
    """The server took the message and the answer was lost: nobody may say that it was not sent."""
    mailbox = Mailbox(drop="DATA")

    with pytest.raises(AmbiguousWriteError, match="may have been sent"):
        SmtpMailer(settings(serve(mailbox))).send(MESSAGE)

    assert len(mailbox.mails) == 1


def test_mail_connection_lost_before_the_message_is_not_sent(serve):
    """A connection that ends before the message is handed over has sent nothing."""
    mailbox = Mailbox(drop="RCPT")

    with pytest.raises(TransientError, match="was not sent"):
        SmtpMailer(settings(serve(mailbox))).send(MESSAGE)

    assert mailbox.mails == []


def test_mail_server_that_is_down_is_tried_again():
    """Nobody listens: later."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening

        with pytest.raises(TransientError, match="cannot be reached"):
            SmtpMailer(settings(taken.getsockname()[1])).send(MESSAGE)


@pytest.mark.parametrize(
    ("number", "error"),
    [(socket.EAI_NONAME, ConfigError), (socket.EAI_AGAIN, TransientError)],
    ids=["no such", "no answer"],
)
def test_mail_unknown_host_names_the_setting(monkeypatch, number, error):
    """A name that does not exist is the setting's fault; a name service that does not answer is not."""

    def refuse(*_, **__):
        raise socket.gaierror(number, "no")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)

    with pytest.raises(error):
        SmtpMailer(settings(25)).send(MESSAGE)


@pytest.mark.parametrize(
    ("replies", "error"),
    [
        pytest.param([b"421 busy"], TransientError, id="busy at the greeting"),
        pytest.param([b"554 go away"], ConfigError, id="refused at the greeting"),
        pytest.param([b"220 hi", b"250 hi", b"550 not you"], ConfigError, id="sender refused"),
        pytest.param([b"220 hi", b"250 hi", b"451 later"], TransientError, id="sender later"),
        pytest.param(
            [b"220 hi", b"250 hi", b"250 ok", b"250 ok", b"421 closing"], TransientError, id="refused before the text"
        ),
        pytest.param(
            [b"220 hi", b"250 hi", b"250 ok", b"250 ok", b"354 go", b"<html>"],
            AmbiguousWriteError,
            id="nonsense after the text",
        ),
        pytest.param(
            [b"220 hi", b"250 hi", b"250 ok", b"250 ok", b"354 go"], AmbiguousWriteError, id="silence after the text"
        ),
        pytest.param([b"\x16\x03\x01"], TransientError, id="no SMTP at all"),
    ],
)
def test_mail_answers_of_odd_servers(replies, error):
    """Whatever a server says, and wherever it stops, the error says whether the mail may have been sent."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        talker = threading.Thread(target=_talk, args=(listener, replies))
        talker.start()

        with pytest.raises(error):
            SmtpMailer(settings(listener.getsockname()[1])).send(Email(to=(LEAD,), subject="s", text="t"))

        talker.join(10)


def _talk(listener, replies):
    """Say one line per command, then hang up."""
    connection, _ = listener.accept()
    with connection, connection.makefile("rb") as heard:
        for number, reply in enumerate(replies):
            if number == 5:  # after the text
                for line in heard:
                    if line == b".\r\n":
                        break
            elif number:
                heard.readline()
            connection.sendall(reply + b"\r\n")
        connection.shutdown(socket.SHUT_WR)
        heard.read()


@pytest.mark.parametrize("break_", ["\n", "\r\n", "\r", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029", "\x00"])
@pytest.mark.parametrize("field", ["to", "subject", "message_id", "headers"])
def test_mail_headers_cannot_be_injected(field, break_):
    """Whatever ends a line somewhere is refused in everything that becomes a header."""
    text = f"a@example.com{break_}Bcc: evil@example.com"
    value = {"to": (text,), "headers": {"X-Note": text}}.get(field, text)

    with pytest.raises(ValueError, match="one line"):
        Email(**{"to": (LEAD,), "subject": "s", "text": "t", field: value})


def test_mail_recipients_are_plain_addresses():
    """A display name or a list in one recipient is refused before anything is sent."""
    with pytest.raises(MappingError):
        Email(to=("Lead <lead@example.com>",), subject="s", text="t")


@pytest.mark.parametrize(
    ("address", "code"),
    [
        pytest.param(None, "email_missing", id="none"),
        pytest.param("  ", "email_missing", id="blank"),
        pytest.param("lead", "email_malformed", id="no at"),
        pytest.param("lead@", "email_malformed", id="no domain"),
        pytest.param("@example.com", "email_malformed", id="no name"),
        pytest.param("a@b@example.com", "email_malformed", id="two ats"),
        pytest.param("lead@example.com\nBcc: x", "email_malformed", id="line break"),
        pytest.param("lead@exa mple.com", "email_malformed", id="blank inside"),
        pytest.param("Lead <lead@example.com>", "email_malformed", id="display name"),
        pytest.param("lead..x@example.com", "email_malformed", id="two dots"),
        pytest.param("lead@example.com.", "email_malformed", id="dot at the end"),
        pytest.param("lead@-example.com", "email_malformed", id="dash"),
        pytest.param('"a b"@example.com', "email_malformed", id="quoted"),
        pytest.param("läad@example.com", "email_malformed", id="not ASCII"),
        pytest.param("lead@exаmple.com", "email_malformed", id="look-alike letter"),
        pytest.param("x" * 65 + "@example.com", "email_malformed", id="long name"),
        pytest.param("a@example.com,b@example.com", "email_several", id="comma"),
        pytest.param("a@example.com; b@example.com", "email_several", id="semicolon"),
        pytest.param("a@example.com b@example.com", "email_several", id="blank"),
        pytest.param("lead@example.org", "email_not_allowed", id="other domain"),
        pytest.param("lead@sub.example.com", "email_not_allowed", id="subdomain"),
        pytest.param("lead@notexample.com", "email_not_allowed", id="longer domain"),
        pytest.param("lead@example.com.evil.example", "email_not_allowed", id="suffix"),
    ],
)
def test_recipient_refused_says_why(address, code):
    """Each way to be wrong has its code and a sentence that does not repeat the address."""
    with pytest.raises(MappingError) as caught:
        check_recipient(address, ["example.com"])

    assert caught.value.code == code
    assert not address or not address.strip() or address.strip() not in caught.value.message


@pytest.mark.parametrize(
    ("address", "found"),
    [
        (" lead@example.com ", "lead@example.com"),
        ("Lead.One+x@EXAMPLE.com", "Lead.One+x@example.com"),
        ("o'hara@example.com", "o'hara@example.com"),
    ],
)
def test_recipient_allowed_is_normalised(address, found):
    """Blanks around it go, the domain is written small, the name stays as it is."""
    assert check_recipient(address, ["Example.com"]) == found
