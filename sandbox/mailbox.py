"""A mail server that keeps everything and delivers nothing, with a page to read the mails and faults on demand.

SMTP by aiosmtpd beside the web page of a Simulator: serving the Mailbox serves both. Plain, with STARTTLS or with TLS
from the first byte; with or without signing in.
"""

import asyncio
import dataclasses
import email
import email.policy
import json
import logging
import re
import ssl
import warnings
from collections.abc import AsyncIterator
from datetime import datetime
from email.message import EmailMessage
from enum import StrEnum
from typing import Any

from aiohttp import web
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session
from jinja2 import Environment

from sandbox.processes import LOOPBACK
from sandbox.simulator import SANDBOX_PREFIX, Clock, Simulator

logging.getLogger("mail.log").setLevel(logging.ERROR)  # aiosmtpd's own; it warns of what is meant here


class Security(StrEnum):
    """How a connection to the mail server is protected."""

    PLAIN = "plain"
    STARTTLS = "starttls"  # demanded before anything else
    TLS = "tls"  # from the first byte


class MailFaultKind(StrEnum):
    """What goes wrong with one delivery."""

    REFUSE_SIGN_IN = "refuse_sign_in"  # answers `code` to the right password; clients try a second way, so strike twice
    REFUSE_RECIPIENT = "refuse_recipient"  # answers `code` to a recipient that matches
    REFUSE_MESSAGE = "refuse_message"  # answers `code` after the text; nothing is kept
    LOSE_ANSWER = "lose_answer"  # the message is kept, then the connection is cut: the sender cannot know
    HANG = "hang"  # says nothing after the text for `seconds`, then cuts the connection; nothing is kept


DEFAULT_CODES = {
    MailFaultKind.REFUSE_SIGN_IN: 535,
    MailFaultKind.REFUSE_RECIPIENT: 550,
    MailFaultKind.REFUSE_MESSAGE: 554,
}


@dataclasses.dataclass
class MailFault:
    """One planned failure: which recipients (a regular expression), from which occurrence on, how often."""

    kind: MailFaultKind
    recipient: str = ""  # empty: any
    code: int = 0  # 0: the kind's usual 5xx; 4xx means "try again later"
    skip: int = 0  # occurrences to let pass first
    times: int = 1  # how many to hit after that; 0 = until removed
    seconds: float = 0.0
    seen: int = 0
    hit: int = 0

    def takes(self, kind: MailFaultKind, recipients: list[str]) -> bool:
        """Count an occurrence that matches and tell whether this fault strikes it."""
        if kind is not self.kind:
            return False
        if self.recipient and not any(re.search(self.recipient, each) for each in recipients):
            return False
        self.seen += 1
        if self.seen <= self.skip or (self.times and self.hit >= self.times):
            return False
        self.hit += 1
        return True

    @property
    def answer(self) -> str:
        """Return the line that the server says."""
        code = self.code or DEFAULT_CODES[self.kind]
        return f"{code} {'4.3.0 try again later' if code < 500 else '5.7.1 refused'} (sandbox)"


@dataclasses.dataclass(frozen=True)
class Mail:
    """One accepted mail: the envelope as the server saw it, and the parsed message."""

    number: int  # from 1, in the order of arrival
    at: datetime
    sender: str
    recipients: tuple[str, ...]
    user: str | None  # who was signed in
    encrypted: bool
    message: EmailMessage

    @property
    def text(self) -> str:
        """Return the text part, empty without one."""
        return _content(self.message, "plain")

    @property
    def html(self) -> str:
        """Return the HTML part, empty without one."""
        return _content(self.message, "html")

    @property
    def attachments(self) -> list[EmailMessage]:
        """Return the attached parts in their order."""
        return list(self.message.iter_attachments())

    def as_dict(self) -> dict[str, Any]:
        """Return what `GET /_sandbox/messages` shows of a mail."""
        headers = {
            name: str(self.message[name]) for name in ("From", "To", "Subject", "Message-ID") if name in self.message
        }
        return {
            "number": self.number,
            "at": self.at.isoformat(),
            "sender": self.sender,
            "recipients": list(self.recipients),
            "user": self.user,
            "encrypted": self.encrypted,
            "headers": headers,
            "text": self.text,
            "html": self.html,
            "attachments": [
                {"name": part.get_filename(), "type": part.get_content_type(), "bytes": len(_payload(part))}
                for part in self.attachments
            ],
        }


class Mailbox(Simulator):
    """The mail server; `smtp_port` tells where it listens once it is served.

    With `user` and `password` a sender has to sign in. `context` is the server's certificate, for STARTTLS and TLS.
    """

    name = "mailbox"

    def __init__(
        self,
        security: Security | str = Security.PLAIN,
        context: ssl.SSLContext | None = None,
        user: str | None = None,
        password: str | None = None,
        smtp_port: int = 0,
        clock: Clock | None = None,
    ) -> None:
        super().__init__(clock)
        self.security = Security(security)
        if self.security is not Security.PLAIN and context is None:
            raise ValueError(f"{self.security} needs a certificate: give a context")
        self._context, self._user, self._password = context, user, password
        self._wanted_port = smtp_port
        self.smtp_port = 0
        self.mails: list[Mail] = []
        self.mail_faults: list[MailFault] = []
        self.app.cleanup_ctx.append(self._serve_smtp)

    # -- for tests ----------------------------------------------------------------------------------------------------

    @property
    def messages(self) -> list[EmailMessage]:
        """Return the accepted messages, oldest first."""
        return [mail.message for mail in self.mails]

    def add_mail_fault(self, kind: MailFaultKind | str, **facts: Any) -> MailFault:
        """Plan a fault; see MailFault for the facts."""
        fault = MailFault(MailFaultKind(kind), **facts)
        self.mail_faults.append(fault)
        return fault

    # -- SMTP ---------------------------------------------------------------------------------------------------------

    async def _serve_smtp(self, app: web.Application) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        tls = self._context if self.security is Security.TLS else None
        server = await loop.create_server(self._session, LOOPBACK, self._wanted_port, ssl=tls)
        self.smtp_port = server.sockets[0].getsockname()[1]
        yield
        server.close()

    def _session(self) -> SMTP:
        starttls = self.security is Security.STARTTLS
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that signing in without TLS is unsafe is known here
            return SMTP(
                self,
                hostname="localhost",
                ident="Concord sandbox",
                loop=asyncio.get_running_loop(),
                enable_SMTPUTF8=True,
                tls_context=self._context if starttls else None,
                require_starttls=starttls,
                auth_required=self._user is not None,
                auth_require_tls=starttls,  # with TLS from the first byte aiosmtpd does not see the encryption
                authenticator=self._sign_in,
            )

    def _sign_in(self, server: SMTP, session: Session, envelope: Envelope, mechanism: str, given: Any) -> AuthResult:
        if fault := self._strikes(MailFaultKind.REFUSE_SIGN_IN, []):
            return AuthResult(success=False, handled=False, message=fault.answer)
        if not isinstance(given, LoginPassword) or self._user is None or self._password is None:
            return AuthResult(success=False, handled=False)
        right = (given.login, given.password) == (self._user.encode(), self._password.encode())
        return AuthResult(success=right, handled=False, auth_data=given)

    async def handle_RCPT(  # noqa: N802 - aiosmtpd's name
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        """Take or refuse a recipient."""
        if fault := self._strikes(MailFaultKind.REFUSE_RECIPIENT, [address]):
            return fault.answer
        envelope.rcpt_tos.append(address)
        envelope.rcpt_options.extend(options)
        return "250 2.1.5 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802 - aiosmtpd's name
        """Keep or refuse a message."""
        if fault := self._strikes(MailFaultKind.REFUSE_MESSAGE, envelope.rcpt_tos):
            return fault.answer
        if fault := self._strikes(MailFaultKind.HANG, envelope.rcpt_tos):
            await asyncio.sleep(fault.seconds)
            await self._hang_up(server)
        self._keep(session, envelope)
        if self._strikes(MailFaultKind.LOSE_ANSWER, envelope.rcpt_tos):
            await self._hang_up(server)
        return "250 2.0.0 OK"

    def _keep(self, session: Session, envelope: Envelope) -> None:
        message = email.message_from_bytes(envelope.original_content or b"", policy=email.policy.default)
        signed_in = session.auth_data
        user = signed_in.login.decode("utf-8", "replace") if isinstance(signed_in, LoginPassword) else None
        encrypted = self.security is not Security.PLAIN
        number = len(self.mails) + 1
        sender, recipients = envelope.mail_from or "", tuple(envelope.rcpt_tos)
        self.mails.append(Mail(number, self.clock.now(), sender, recipients, user, encrypted, message))

    async def _hang_up(self, server: Any) -> None:
        server.transport.abort()
        await asyncio.Event().wait()  # until the lost connection cancels us

    def _strikes(self, kind: MailFaultKind, recipients: list[str]) -> MailFault | None:
        return next((fault for fault in self.mail_faults if fault.takes(kind, recipients)), None)

    # -- pages --------------------------------------------------------------------------------------------------------

    def add_routes(self, routes: web.UrlDispatcher) -> None:
        """Add the pages for people and the controls of the mailbox."""
        routes.add_get("/", self._show_list)
        routes.add_get(r"/messages/{number:\d+}", self._show_mail)
        routes.add_get(r"/messages/{number:\d+}/attachments/{index:\d+}", self._download)
        routes.add_get(f"{SANDBOX_PREFIX}messages", self._get_messages)
        routes.add_delete(f"{SANDBOX_PREFIX}messages", self._clear_messages)
        routes.add_get(f"{SANDBOX_PREFIX}mail_faults", self._get_mail_faults)
        routes.add_post(f"{SANDBOX_PREFIX}mail_faults", self._add_mail_fault)
        routes.add_delete(f"{SANDBOX_PREFIX}mail_faults", self._clear_mail_faults)

    async def _show_list(self, request: web.Request) -> web.Response:
        return _page(LIST_PAGE, mails=list(reversed(self.mails)), port=self.smtp_port)

    async def _show_mail(self, request: web.Request) -> web.Response:
        return _page(MAIL_PAGE, mail=self._find(request))

    async def _download(self, request: web.Request) -> web.Response:
        parts = self._find(request).attachments
        index = int(request.match_info["index"])
        if index >= len(parts):
            raise web.HTTPNotFound
        response = web.Response(body=_payload(parts[index]), content_type="application/octet-stream")
        name = re.sub(r'[^\w. -]|"', "_", parts[index].get_filename() or "attachment", flags=re.ASCII)
        response.headers["Content-Disposition"] = f'attachment; filename="{name}"'
        return response

    def _find(self, request: web.Request) -> Mail:
        number = int(request.match_info["number"])
        if not 1 <= number <= len(self.mails):
            raise web.HTTPNotFound
        return self.mails[number - 1]

    async def _get_messages(self, request: web.Request) -> web.Response:
        return web.json_response([mail.as_dict() for mail in self.mails])

    async def _clear_messages(self, request: web.Request) -> web.Response:
        self.mails.clear()
        return web.Response(status=204)

    async def _get_mail_faults(self, request: web.Request) -> web.Response:
        return web.json_response([dataclasses.asdict(fault) for fault in self.mail_faults])

    async def _add_mail_fault(self, request: web.Request) -> web.Response:
        try:
            self.add_mail_fault(**await request.json())
        except (TypeError, ValueError, json.JSONDecodeError) as exc:
            kinds = ", ".join(kind.value for kind in MailFaultKind)
            return web.json_response({"error": f"not a mail fault: {exc}; kinds are {kinds}"}, status=400)
        return web.Response(status=204)

    async def _clear_mail_faults(self, request: web.Request) -> web.Response:
        self.mail_faults.clear()
        return web.Response(status=204)


def _content(message: EmailMessage, kind: str) -> str:
    part = message.get_body((kind,))
    return part.get_content().replace("\r\n", "\n") if part is not None else ""


def _payload(part: EmailMessage) -> bytes:
    payload = part.get_payload(decode=True)
    return payload if isinstance(payload, bytes) else part.as_bytes()


def _page(template: str, **values: Any) -> web.Response:
    body = Environment(autoescape=True).from_string(HEAD + template).render(**values)
    # what a mail brings along may not run, load or phone home; its frame inherits this
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-src 'self'"
    return web.Response(text=body, content_type="text/html", headers={"Content-Security-Policy": policy})


HEAD = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Mailbox</title><style>
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 60rem; padding: 1rem } h1 { font-size: 1.4rem } h2 { font-size: 1.1rem }
table { border-collapse: collapse; width: 100% } th, td { text-align: left; padding: .4rem .6rem; border-bottom: 1px solid #ddd; overflow-wrap: anywhere }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #f5f5f5; padding: 1rem }
iframe { width: 100%; height: 40rem; border: 1px solid #ddd; box-sizing: border-box }
@media (max-width: 40rem) { th { display: none } tr { display: block; padding: .5rem 0; border-bottom: 1px solid #ddd } td { display: block; border: 0; padding: 0 } }
</style>"""

LIST_PAGE = """<h1>Mailbox</h1><p>Everything sent to SMTP port {{ port }} of this machine; nothing is delivered.</p>
<table><tr><th>At (UTC)<th>To<th>Subject</tr>
{% for mail in mails %}<tr><td>{{ mail.at.strftime("%Y-%m-%d %H:%M:%S") }}<td>{{ mail.recipients | join(", ") }}
<td><a href="/messages/{{ mail.number }}">{{ mail.message["Subject"] or "(no subject)" }}</a></tr>
{% else %}<tr><td colspan="3">No mail yet: it comes when a run has ended.</tr>{% endfor %}</table>"""

MAIL_PAGE = """<p><a href="/">All mails</a></p><h1>{{ mail.message["Subject"] or "(no subject)" }}</h1>
<p>From {{ mail.message["From"] }} to {{ mail.message["To"] }}, {{ mail.at.strftime("%Y-%m-%d %H:%M:%S") }} UTC.
Envelope: {{ mail.sender }} → {{ mail.recipients | join(", ") }}.</p>
{% if mail.attachments %}<h2>Attachments</h2><ul>{% for part in mail.attachments %}
<li><a href="/messages/{{ mail.number }}/attachments/{{ loop.index0 }}">{{ part.get_filename() or "attachment" }}</a></li>
{% endfor %}</ul>{% endif %}
{% if mail.html %}<h2>HTML</h2>
<iframe sandbox="allow-popups allow-popups-to-escape-sandbox" srcdoc="{{ '<base target="_blank">' + mail.html }}"></iframe>{% endif %}
{% if mail.text %}<h2>Text</h2><pre>{{ mail.text }}</pre>{% endif %}"""
