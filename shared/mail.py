"""Mail over SMTP: the message, and a server's answers as errors of the tree.

An answer that is lost after the message was handed over is an AmbiguousWriteError: it may have been sent. No error text
repeats an address or a server's words, which often hold one.
"""

import contextlib
import dataclasses
import smtplib
import socket
import ssl
import unicodedata
from collections.abc import Iterator, Mapping
from email.message import EmailMessage
from email.policy import SMTP

from shared.addresses import check_recipient, parse_address
from shared.errors import AmbiguousWriteError, ConfigError, RejectedError, SyncError, TransientError
from shared.settings import Mail

__all__ = ["Attachment", "Delivery", "Email", "SmtpMailer", "build_message", "check_recipient", "parse_address"]

CONNECTION = "mail"
POLICY = SMTP.clone(cte_type="7bit")  # readable by every server, whether it knows 8BITMIME or not
STANDARD_HEADERS = {"Auto-Submitted": "auto-generated", "X-Auto-Response-Suppress": "All"}  # no out-of-office replies
_BREAKS = {"Cc", "Zl", "Zp"}  # control characters and separators: any of them may start a new header line somewhere


@dataclasses.dataclass(frozen=True)
class Attachment:
    """A file that goes with a mail."""

    name: str
    content: bytes
    type: str = "application/octet-stream"  # "text/csv"

    def __post_init__(self) -> None:
        refuse_breaks("attachment's name", self.name)
        refuse_breaks("attachment's type", self.type)


@dataclasses.dataclass(frozen=True)
class Email:
    """One mail.

    Raises ValueError when something that becomes a header could start another one, MappingError for a recipient that is
    no plain address.
    """

    to: tuple[str, ...]
    subject: str
    text: str
    html: str = ""
    attachments: tuple[Attachment, ...] = ()
    message_id: str = ""  # "<…@…>"; the same for a repeat, so that mail programs show it once
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        refuse_breaks("subject", self.subject)
        refuse_breaks("message id", self.message_id)
        for address in self.to:
            refuse_breaks("recipient", address)
            parse_address(address)
        for name, value in self.headers.items():
            refuse_breaks("header", name + value)


@dataclasses.dataclass(frozen=True)
class Delivery:
    """What the server said to each recipient of a mail that it took for at least one."""

    accepted: tuple[str, ...]
    deferred: tuple[str, ...] = ()  # not now: send to these again
    refused: tuple[str, ...] = ()  # never: no such mailbox, not allowed


class SmtpMailer:
    """Sends mail through one server; a connection per mail, so nothing has to be kept alive."""

    def __init__(self, mail: Mail, tls: ssl.SSLContext | None = None) -> None:
        self._mail = mail
        self._tls = tls  # None: the system's certificates, or SSL_CERT_FILE

    def send(self, email: Email) -> Delivery:
        """Send a mail and return who gets it.

        Raises ConfigError (sign-in, certificate, host or sender refused), TransientError (not now, nothing was sent),
        RejectedError (never: all recipients or the message refused) and AmbiguousWriteError (it may have been sent).
        """
        if not email.to:
            raise RejectedError("The mail has no recipient.", connection=CONNECTION)
        content = build_message(email, self._mail.sender).as_bytes(policy=POLICY)
        with self._connected() as smtp:
            delivery = self._name_recipients(smtp, email.to)
            self._hand_over(smtp, content)
        return delivery

    @contextlib.contextmanager
    def _connected(self) -> Iterator[smtplib.SMTP]:
        """Connect, sign in, and turn everything that goes wrong before the message into an error of the tree."""
        smtp: smtplib.SMTP | None = None
        try:
            smtp = self._connect()
            yield smtp
        except smtplib.SMTPResponseException as exc:
            raise self._refusal(exc.smtp_code, "our greeting", "MAIL__HOST") from None
        except (smtplib.SMTPServerDisconnected, TimeoutError, ssl.SSLEOFError, ssl.SSLZeroReturnError) as exc:
            raise TransientError(
                f"The mail server {self._mail.host} did not answer; the mail was not sent.", connection=CONNECTION
            ) from exc
        except ssl.SSLCertVerificationError as exc:
            raise ConfigError(
                f"The mail server's certificate is not valid for {self._mail.host} ({exc.verify_message}): "
                "check MAIL__HOST, or have the server's certificate replaced."
            ) from exc
        except ssl.SSLError as exc:
            raise ConfigError(
                f"The mail server {self._mail.host}:{self._mail.port} does not speak TLS this way: check MAIL__SECURITY "
                "and MAIL__PORT (implicit_tls 465, starttls 587)."
            ) from exc
        except socket.gaierror as exc:
            if exc.errno == socket.EAI_AGAIN:
                raise TransientError("The name service did not answer.", connection=CONNECTION) from exc
            raise ConfigError(f"There is no mail server named {self._mail.host}: check MAIL__HOST.") from exc
        except OSError as exc:
            raise TransientError(
                f"The mail server {self._mail.host} cannot be reached; the mail was not sent.", connection=CONNECTION
            ) from exc
        finally:
            if smtp is not None:
                self._leave(smtp)

    def _connect(self) -> smtplib.SMTP:
        mail, timeout_s = self._mail, self._mail.timeout_s
        if mail.security == "implicit_tls":
            smtp: smtplib.SMTP = smtplib.SMTP_SSL(mail.host, mail.port, timeout=timeout_s, context=self._context())
        else:
            smtp = smtplib.SMTP(mail.host, mail.port, timeout=timeout_s)
        try:
            smtp.ehlo_or_helo_if_needed()
            if mail.security == "starttls":
                self._start_tls(smtp)
            if mail.user:
                self._sign_in(smtp, mail.user)
        except BaseException:
            smtp.close()
            raise
        return smtp

    def _context(self) -> ssl.SSLContext:
        return self._tls or ssl.create_default_context()

    def _start_tls(self, smtp: smtplib.SMTP) -> None:
        if not smtp.has_extn("starttls"):
            raise ConfigError(
                f"The mail server {self._mail.host} offers no STARTTLS, and nothing is sent unencrypted: set MAIL__SECURITY "
                "to implicit_tls, or to none for a server on this machine."
            )
        smtp.starttls(context=self._context())
        smtp.ehlo()

    def _sign_in(self, smtp: smtplib.SMTP, user: str) -> None:
        password = self._mail.password.get_secret_value() if self._mail.password else ""
        try:
            smtp.login(user, password)
        except smtplib.SMTPServerDisconnected:
            raise
        except smtplib.SMTPResponseException as exc:
            raise self._refusal(exc.smtp_code, "the sign-in", "MAIL__USER and MAIL__PASSWORD") from None
        except (smtplib.SMTPException, UnicodeError):  # UnicodeError repeats the password: it is not chained
            raise ConfigError(
                f"The mail server {self._mail.host} has no way to sign in with a user and a password like these: "
                "check MAIL__USER and MAIL__PASSWORD, or leave both empty."
            ) from None

    def _name_recipients(self, smtp: smtplib.SMTP, recipients: tuple[str, ...]) -> Delivery:
        code, _ = smtp.mail(self._mail.sender)
        if code != 250:
            raise self._refusal(code, "the sender's address", "MAIL__SENDER")
        answers = {address: smtp.rcpt(address)[0] for address in dict.fromkeys(recipients)}
        accepted = tuple(address for address, code in answers.items() if code in (250, 251))
        deferred = tuple(address for address, code in answers.items() if 400 <= code < 500)
        refused = tuple(address for address in answers if address not in {*accepted, *deferred})
        if not accepted:
            raise self._refusal(answers[(deferred or refused)[0]], "every recipient's address")
        return Delivery(accepted, deferred, refused)

    def _hand_over(self, smtp: smtplib.SMTP, content: bytes) -> None:
        try:
            code, _ = smtp.data(content)
        except smtplib.SMTPDataError as exc:  # refused before the message was handed over
            code = exc.smtp_code
        except (smtplib.SMTPException, OSError) as exc:
            raise AmbiguousWriteError(
                "The mail server's answer to the message was lost: it may have been sent.", connection=CONNECTION
            ) from exc
        if code < 0:
            raise AmbiguousWriteError(
                "The mail server's answer to the message cannot be read: it may have been sent.", connection=CONNECTION
            )
        if code != 250:
            raise self._refusal(code, "the message")

    def _refusal(self, code: int, what: str, setting: str = "") -> SyncError:
        """Return what an answer means: 5xx never (its setting is wrong, or else the mail), all others later."""
        said = f"The mail server {self._mail.host} answered {what} with {code}"
        if code < 500:
            return TransientError(f"{said}: not now, the mail was not sent.", connection=CONNECTION, status=code)
        if setting:
            return ConfigError(f"{said}: check {setting}.")
        return RejectedError(f"{said}: it is refused.", connection=CONNECTION, status=code)

    @staticmethod
    def _leave(smtp: smtplib.SMTP) -> None:
        with contextlib.suppress(smtplib.SMTPException, OSError):
            smtp.quit()
        smtp.close()


def build_message(email: Email, sender: str) -> EmailMessage:
    """Return the MIME message: text, HTML beside it, attachments after both."""
    message = EmailMessage(policy=POLICY)
    message["From"] = sender
    message["To"] = ", ".join(email.to)
    message["Subject"] = email.subject
    if email.message_id:
        message["Message-ID"] = email.message_id
    for name, value in {**STANDARD_HEADERS, **email.headers}.items():
        message[name] = value
    message.set_content(email.text)
    if email.html:
        message.add_alternative(email.html, subtype="html")
    for attachment in email.attachments:
        maintype, _, subtype = attachment.type.partition("/")
        message.add_attachment(attachment.content, maintype=maintype, subtype=subtype, filename=attachment.name)
    return message


def refuse_breaks(what: str, text: str) -> None:
    """Refuse text that could end a header line. Raises ValueError without repeating it."""
    if any(unicodedata.category(character) in _BREAKS for character in text):
        raise ValueError(f"a mail's {what} must stay on one line and hold no control characters")
