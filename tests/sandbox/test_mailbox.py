"""The mailbox, as a mail client and as a browser see it."""

import smtplib
import ssl
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from email.message import EmailMessage

import pytest
import requests
import trustme

from sandbox.mailbox import Mailbox, MailFault, MailFaultKind, Security
from sandbox.simulator import serve_in_thread

SENDER, READER = "concord@example.com", "lead@example.com"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    return context


@pytest.fixture
def mailbox() -> Iterator[Mailbox]:
    """A plain mailbox without signing in."""
    with serve_in_thread(mailbox := Mailbox()):
        yield mailbox


@contextmanager
def client(mailbox: Mailbox, authority: trustme.CA | None = None) -> Iterator[smtplib.SMTP]:
    trust = ssl.create_default_context()
    if authority:
        authority.configure_trust(trust)
    tls = mailbox.security is Security.TLS
    opened: AbstractContextManager[smtplib.SMTP] = (
        smtplib.SMTP_SSL("localhost", mailbox.smtp_port, timeout=10, context=trust)
        if tls
        else smtplib.SMTP("localhost", mailbox.smtp_port, timeout=10)
    )
    with opened as smtp:
        if mailbox.security is Security.STARTTLS:
            smtp.starttls(context=trust)
        yield smtp


def mail(subject: str = "Summary") -> EmailMessage:
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = SENDER, READER, subject
    message["Message-ID"] = "<run-1@example.com>"
    message.set_content("2 cases\n.dotted line\nünïcode\n")
    message.add_alternative('<p>2 cases <a href="https://example.com">"more"</a></p>', subtype="html")
    message.add_attachment(b"number;reason\n", maintype="text", subtype="csv", filename="failed cases.csv")
    return message


class TestSending:
    @pytest.mark.parametrize("security", list(Security))
    def test_mail_is_kept_as_it_was_sent(
        self, security: Security, context: ssl.SSLContext, authority: trustme.CA
    ) -> None:
        """Plain, STARTTLS or TLS: headers, both parts and the attachment survive, with a user signed in."""
        box = Mailbox(security, context, user="concord", password="pass")
        with serve_in_thread(box), client(box, authority) as smtp:
            smtp.login("concord", "pass")
            smtp.send_message(mail())

        (message,) = box.messages
        assert message["Subject"] == "Summary"
        assert box.mails[0].text == "2 cases\n.dotted line\nünïcode\n"
        assert "2 cases <a" in box.mails[0].html
        assert [part.get_filename() for part in box.mails[0].attachments] == ["failed cases.csv"]
        assert (box.mails[0].sender, box.mails[0].recipients) == (SENDER, (READER,))
        assert (box.mails[0].user, box.mails[0].encrypted) == ("concord", security is not Security.PLAIN)

    def test_sender_must_sign_in(self) -> None:
        """Without signing in nothing is taken; a wrong password is 535."""
        box = Mailbox(user="concord", password="pass")
        with serve_in_thread(box), client(box) as smtp:
            with pytest.raises(smtplib.SMTPSenderRefused) as unsigned:
                smtp.send_message(mail())
            with pytest.raises(smtplib.SMTPAuthenticationError) as wrong:
                smtp.login("concord", "wrong")

        assert unsigned.value.smtp_code == 530
        assert wrong.value.smtp_code == 535
        assert box.messages == []

    def test_starttls_is_demanded(self, context: ssl.SSLContext) -> None:
        """A sender that goes on without STARTTLS is refused."""
        box = Mailbox(Security.STARTTLS, context)
        with (
            serve_in_thread(box),
            smtplib.SMTP("localhost", box.smtp_port, timeout=10) as smtp,
            pytest.raises(smtplib.SMTPResponseException) as refused,
        ):
            smtp.send_message(mail())

        assert refused.value.smtp_code == 530
        assert box.messages == []

    def test_tls_needs_a_certificate(self) -> None:
        """The mistake is found when the mailbox is made."""
        with pytest.raises(ValueError, match="certificate"):
            Mailbox(Security.TLS)


class TestFaults:
    def test_recipient_is_refused(self, mailbox: Mailbox) -> None:
        """Only the recipient that matches is refused; the other gets the mail."""
        mailbox.add_mail_fault(MailFaultKind.REFUSE_RECIPIENT, recipient="^lead@", code=450)

        with client(mailbox) as smtp:
            refused = smtp.send_message(mail(), to_addrs=[READER, "other@example.com"])

        assert refused[READER][0] == 450
        assert mailbox.mails[0].recipients == ("other@example.com",)

    @pytest.mark.parametrize("code", [451, 554])
    def test_message_is_refused_after_its_text(self, mailbox: Mailbox, code: int) -> None:
        """The first one is refused for now or for good, the second one taken."""
        mailbox.add_mail_fault("refuse_message", code=code)

        with client(mailbox) as smtp:
            with pytest.raises(smtplib.SMTPDataError) as refused:
                smtp.send_message(mail())
            smtp.send_message(mail())

        assert refused.value.smtp_code == code
        assert len(mailbox.messages) == 1

    @pytest.mark.parametrize("security", list(Security))
    @pytest.mark.parametrize(("kind", "kept"), [("lose_answer", 1), ("hang", 0)])
    def test_connection_is_cut_after_the_text(
        self, kind: str, kept: int, security: Security, context: ssl.SSLContext, authority: trustme.CA
    ) -> None:
        """The sender sees the same twice: once the mail was taken, once it was not."""
        box = Mailbox(security, context)
        box.add_mail_fault(kind)
        with serve_in_thread(box), pytest.raises(smtplib.SMTPServerDisconnected), client(box, authority) as smtp:
            smtp.send_message(mail())

        assert len(box.messages) == kept

    def test_signing_in_is_refused(self) -> None:
        """454 is the server's own trouble, not a wrong password."""
        box = Mailbox(user="concord", password="pass")
        box.add_mail_fault("refuse_sign_in", code=454, times=2)
        with serve_in_thread(box), client(box) as smtp, pytest.raises(smtplib.SMTPAuthenticationError) as refused:
            smtp.login("concord", "pass")

        assert refused.value.smtp_code == 454

    def test_fault_lets_the_first_ones_pass(self) -> None:
        """`skip` and `times` count occurrences that match."""
        fault = MailFault(MailFaultKind.HANG, recipient="lead", skip=1, times=1)

        struck = [fault.takes(MailFaultKind.HANG, [to]) for to in ("other@x", "lead@x", "lead@x", "lead@x")]

        assert struck == [False, False, True, False]


class TestPages:
    @pytest.fixture
    def url(self) -> Iterator[str]:
        """A mailbox that holds one mail with a hostile subject."""
        with serve_in_thread(box := Mailbox()) as (port,):
            with client(box) as smtp:
                smtp.send_message(mail("<b>2 cases</b>"))
            yield f"http://127.0.0.1:{port}"

    def test_list_shows_subjects_as_text(self, url: str) -> None:
        """A subject is never markup."""
        page = requests.get(url, timeout=10).text

        assert "&lt;b&gt;2 cases&lt;/b&gt;" in page
        assert 'href="/messages/1"' in page

    def test_mail_is_shown_in_a_sandboxed_frame(self, url: str) -> None:
        """The HTML part stands in an attribute of a frame without scripts, the text part beside it."""
        answer = requests.get(f"{url}/messages/1", timeout=10)

        assert 'srcdoc="&lt;base target=&#34;_blank&#34;&gt;&lt;p&gt;2 cases' in answer.text
        assert "allow-scripts" not in answer.text
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert "ünïcode" in answer.text

    def test_attachment_is_downloaded(self, url: str) -> None:
        """It comes under its own name and never opens in the page."""
        answer = requests.get(f"{url}/messages/1/attachments/0", timeout=10)

        assert answer.content == b"number;reason\n"
        assert answer.headers["Content-Disposition"] == 'attachment; filename="failed cases.csv"'

    @pytest.mark.parametrize("path", ["messages/2", "messages/0", "messages/1/attachments/1"])
    def test_what_is_not_there_is_404(self, url: str, path: str) -> None:
        """Numbers start at 1, attachments at 0."""
        assert requests.get(f"{url}/{path}", timeout=10).status_code == 404

    def test_messages_are_listed_as_json(self, url: str) -> None:
        """What a script needs to check a mail."""
        (shown,) = requests.get(f"{url}/_sandbox/messages", timeout=10).json()

        assert shown["headers"] == {
            "From": SENDER,
            "To": READER,
            "Subject": "<b>2 cases</b>",
            "Message-ID": "<run-1@example.com>",
        }
        assert shown["attachments"] == [{"name": "failed cases.csv", "type": "text/csv", "bytes": 14}]
        assert requests.delete(f"{url}/_sandbox/messages", timeout=10).status_code == 204
        assert requests.get(f"{url}/_sandbox/messages", timeout=10).json() == []

    def test_faults_are_planned_by_request(self, url: str) -> None:
        """A fault that does not exist is refused with the list of those that do."""
        wrong = requests.post(f"{url}/_sandbox/mail_faults", json={"kind": "explode"}, timeout=10)
        right = requests.post(f"{url}/_sandbox/mail_faults", json={"kind": "hang", "seconds": 5}, timeout=10)
        listed = requests.get(f"{url}/_sandbox/mail_faults", timeout=10).json()

        assert wrong.status_code == 400
        assert "lose_answer" in wrong.json()["error"]
        assert right.status_code == 204
        assert [fault["kind"] for fault in listed] == ["hang"]
