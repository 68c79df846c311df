"""Queue triggers by the rules of Microsoft's storage queue listener.

Batches with a fixed lease, a threshold before the next batch, a growing pause on an empty queue, and poison after
`maxDequeueCount`. `visibilityTimeout` delays only what failed; the lease is what a dead host leaves behind.
https://learn.microsoft.com/azure/azure-functions/functions-bindings-storage-queue-trigger
"""

import base64
import contextlib
import logging
import random
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from datetime import UTC, datetime
from enum import Enum, auto
from typing import Any

import requests
from azure.core.exceptions import AzureError, ResourceExistsError, ResourceNotFoundError
from azure.core.pipeline.transport import RequestsTransport
from azure.storage.queue import LinearRetry, QueueClient, QueueMessage
from requests.adapters import HTTPAdapter

from sandbox.host_config import QueueRules
from sandbox.host_messages import QueueCall
from sandbox.host_pool import InvocationError

POISON_SUFFIX = "-poison"
MAX_QUEUE_NAME = 63
FIRST_PAUSE_S = 0.1
TROUBLE_PAUSE_S = 1.0  # before the next look when storage does not answer
DELETE_TRIES = 3
CONNECTIONS = 64
log = logging.getLogger("host")

Invoke = Callable[[str, QueueCall], "Future[Any]"]


class Verdict(Enum):
    """What becomes of a message that was not worked."""

    SHOW_AGAIN = auto()  # visible after visibilityTimeout
    POISON = auto()  # body copied to the poison queue, original deleted
    LEAVE = auto()  # nothing: it comes back when its lease ends


def judge_received(dequeue_count: int, max_dequeue_count: int, has_poison: bool) -> Verdict | None:
    """Decide about a message before it runs: one whose earlier attempts all died is poison without a run."""
    if dequeue_count <= max_dequeue_count:
        return None
    return Verdict.POISON if has_poison else None


def judge_failed(dequeue_count: int, max_dequeue_count: int, has_poison: bool) -> Verdict:
    """Decide about a message whose run failed."""
    if not has_poison:
        return Verdict.LEAVE
    return Verdict.SHOW_AGAIN if dequeue_count < max_dequeue_count else Verdict.POISON


def polling_pause_s(empty_looks: int, maximum_s: float, jitter: float) -> float:
    """Return how long to wait after the n-th look in a row that found nothing (n from 1); jitter is 0.8 to 1.2."""
    if empty_looks <= 1:
        return min(FIRST_PAUSE_S, maximum_s)
    return min(FIRST_PAUSE_S + FIRST_PAUSE_S * 2.0 ** min(empty_looks - 2, 30) * jitter, maximum_s)


def poison_name(queue: str) -> str | None:
    """Return the name of a queue's poison queue; a poison queue has none, nor has one whose name would be too long."""
    if queue.endswith(POISON_SUFFIX) or len(queue + POISON_SUFFIX) > MAX_QUEUE_NAME:
        return None
    return queue + POISON_SUFFIX


class QueueListener:
    """Feeds one queue's messages to one function."""

    def __init__(
        self, function: str, queue: str, connection: str, rules: QueueRules, lease_s: int, invoke: Invoke
    ) -> None:
        self.function, self.queue = function, queue
        self._rules, self._lease_s, self._invoke = rules, lease_s, invoke
        self._client = open_queue(connection, queue)
        poison = poison_name(queue)
        self._poison = open_queue(connection, poison) if poison else None
        self._workers = ThreadPoolExecutor(rules.batch_size + rules.new_batch_threshold, f"messages of {queue}")
        self._in_flight = 0
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        self._abandoned = False
        self._thread = threading.Thread(target=self._poll, name=f"poll {queue}", daemon=True)

    # -- for the host -------------------------------------------------------------------------------------------------

    @property
    def in_flight(self) -> int:
        """Return how many messages are in work."""
        return self._in_flight

    def start(self) -> None:
        """Begin to poll."""
        self._thread.start()

    def stop_polling(self) -> None:
        """Take no further messages; those in work go on."""
        self._stopping.set()
        with self._changed:
            self._changed.notify_all()

    def abandon(self) -> None:
        """Leave what does not end in time to its lease."""
        self._abandoned = True

    def join(self) -> None:
        """Wait for the threads; call after the workers have ended."""
        self._thread.join()
        self._workers.shutdown()

    # -- polling ------------------------------------------------------------------------------------------------------

    def _poll(self) -> None:
        empty_looks, trouble = 0, ""
        while not self._stopping.is_set():
            try:
                messages = self._receive()
            except AzureError as exc:
                if str(exc) != trouble:
                    log.error("queue %s cannot be read: %s", self.queue, exc)
                trouble = str(exc)
                self._stopping.wait(TROUBLE_PAUSE_S)
                continue
            if trouble:
                log.info("queue %s can be read again", self.queue)
                trouble = ""
            if not messages:
                empty_looks += 1
                self._stopping.wait(
                    polling_pause_s(empty_looks, self._rules.max_polling_interval, random.uniform(0.8, 1.2))
                )
                continue
            empty_looks = 0
            with self._changed:
                self._in_flight += len(messages)
            for message in messages:
                self._workers.submit(self._process, message)
            with self._changed:
                self._changed.wait_for(
                    lambda: self._in_flight <= self._rules.new_batch_threshold or self._stopping.is_set()
                )

    def _receive(self) -> list[QueueMessage]:
        pages = self._client.receive_messages(
            messages_per_page=self._rules.batch_size, visibility_timeout=self._lease_s, retry_total=0
        ).by_page()
        try:
            return list(next(pages, []))
        except ResourceNotFoundError:  # a queue that nobody made yet is an empty one
            return []

    # -- one message --------------------------------------------------------------------------------------------------

    def _process(self, message: QueueMessage) -> None:
        try:
            self._work(message)
        except AzureError as exc:
            log.error(
                "message %s of %s: storage refused, it comes back when its lease ends: %s", message.id, self.queue, exc
            )
        except Exception:
            log.exception("message %s of %s: the host failed", message.id, self.queue)
        finally:
            with self._changed:
                self._in_flight -= 1
                self._changed.notify_all()

    def _work(self, message: QueueMessage) -> None:
        count, limit = message.dequeue_count or 1, self._rules.max_dequeue_count
        verdict = judge_received(count, limit, self._poison is not None)
        if verdict is None:
            try:
                self._run(message)
            except (InvocationError, ValueError) as exc:
                if self._abandoned:
                    return
                verdict = judge_failed(count, limit, self._poison is not None)
                log.error("message %s of %s failed, attempt %d of %d: %s", message.id, self.queue, count, limit, exc)
        match verdict:
            case None:
                self._delete(message)
            case Verdict.POISON:
                self._move_to_poison(message)
            case Verdict.SHOW_AGAIN:
                self._update_visibility(message, self._rules.visibility_timeout)

    def _run(self, message: QueueMessage) -> None:
        future = self._invoke(self.function, build_call(message, self._rules.message_encoding))
        while not wait([future], self._lease_s / 2).done:
            try:
                self._update_visibility(message, self._lease_s)
                log.debug("message %s of %s: lease renewed", message.id, self.queue)
            except AzureError as exc:
                log.warning("message %s of %s: lease not renewed: %s", message.id, self.queue, exc)
        future.result()

    def _update_visibility(self, message: QueueMessage, seconds: float) -> None:
        with self._owner_changed(message):
            updated = self._client.update_message(message, visibility_timeout=round(seconds))
            message.pop_receipt = updated.pop_receipt

    def _delete(self, message: QueueMessage) -> None:
        with self._owner_changed(message):
            self._client.delete_message(message)

    def _move_to_poison(self, message: QueueMessage) -> None:
        if self._poison is None:
            return
        try:
            self._poison.send_message(message.content)
        except ResourceNotFoundError:
            with contextlib.suppress(ResourceExistsError):
                self._poison.create_queue()
            self._poison.send_message(message.content)
        log.warning("message %s of %s moved to %s", message.id, self.queue, self._poison.queue_name)
        self._delete(message)

    @contextlib.contextmanager
    def _owner_changed(self, message: QueueMessage) -> Any:
        try:
            yield
        except AzureError as exc:
            if getattr(exc, "error_code", None) not in ("MessageNotFound", "PopReceiptMismatch"):
                raise
            log.debug("message %s of %s belongs to another host now", message.id, self.queue)


def open_queue(connection: str, queue: str) -> QueueClient:
    """Return a client that neither encodes nor decodes, with as many connections as messages may be in work."""
    session = requests.Session()
    session.mount("http://", HTTPAdapter(pool_connections=1, pool_maxsize=CONNECTIONS))
    session.mount("https://", HTTPAdapter(pool_connections=1, pool_maxsize=CONNECTIONS))
    return QueueClient.from_connection_string(
        connection,
        queue,
        transport=RequestsTransport(session=session, session_owner=False, connection_timeout=5, read_timeout=30),
        retry_policy=LinearRetry(backoff=1, retry_total=DELETE_TRIES, random_jitter_range=0),
    )


def build_call(message: QueueMessage, encoding: str) -> QueueCall:
    """Return what a worker needs of a message. Raises ValueError when the text is not in the app's encoding."""
    body = message.content
    if encoding == "base64":
        body = base64.b64decode(body, validate=True).decode("utf-8", "replace")
    return QueueCall(
        body=body,
        id=message.id,
        dequeue_count=message.dequeue_count or 1,
        pop_receipt=message.pop_receipt or "",
        insertion_time=_iso(message.inserted_on),
        expiration_time=_iso(message.expires_on),
        next_visible_time=_iso(message.next_visible_on),
    )


def _iso(moment: datetime | None) -> str:
    return (moment or datetime.now(UTC)).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S+00:00")
