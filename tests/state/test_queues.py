"""Messages in queues: what they hold comes back, what does not fit is said, what is foreign is refused."""

import socket
from datetime import UTC, datetime, timedelta
from typing import ClassVar

import pytest
from azure.core.exceptions import ServiceResponseError, ServiceResponseTimeoutError
from azure.core.pipeline.transport import RequestsTransport

from shared.errors import MappingError, StateError
from shared.state.messages import (
    MESSAGES,
    EventMessage,
    ItemModel,
    ItemsMessage,
    Message,
    PageMessage,
    Prepared,
    RowModel,
    RunMessage,
)
from shared.state.queues import (
    MAX_BODY_BYTES,
    MOST_EVENTS,
    MOST_EVENTS_BYTES,
    Queues,
    again,
    fit,
    packed,
    parse,
    poison_of,
    sent_bytes,
)
from shared.state.storage import connect_queues

NOON = datetime(2026, 3, 14, 12, 0, tzinfo=UTC)


def item(key: str = "C1", text: str = "short", **facts) -> ItemModel:
    return ItemModel(
        key=key, row=RowModel(key=key, fields={"title": text, "at": NOON}), prepared=Prepared(at=NOON), **facts
    )


def items(*each: ItemModel) -> ItemsMessage:
    return ItemsMessage(run_id="r", page=0, items=list(each))


def event(event_id: str) -> EventMessage:
    return EventMessage(
        recipe="contact_to_lead",
        record="dynamics365.contact",
        key="k",
        name="Update",
        event_id=event_id,
        received_at=NOON,
    )


def test_message_comes_back_as_it_was_sent(queues):
    """The text is ASCII JSON as it is; the queue is made on the way and the message never expires."""
    message = items(item(text="<b>Grüße & 😀</b> \ud800 \x01"))

    queues.send(message)

    [text] = queues.peek("items")
    assert text.isascii()
    assert parse(ItemsMessage, text) == message
    assert queues._client("items").peek_messages()[0].expires_on.year == 9999
    assert queues.operations.counts() == {"send": 2, "create_queue": 1, "peek": 1}


def test_many_messages_are_sent(queues):
    """Side by side, each once."""
    queues.create_all(["runs"])

    queues.send_many([RunMessage(run_id=str(n)) for n in range(40)])

    assert queues.length("runs") == 40
    assert len({parse(RunMessage, text).run_id for text in queues.peek("runs", 32)}) == 32


def test_delayed_message_is_hidden(queues):
    """It counts, but nobody sees it; no delay is longer than the queue's own limit."""
    queues.send(RunMessage(run_id="r"), delay_s=30 * 24 * 3600)

    assert queues.peek("runs") == []
    assert queues.length("runs") == 1


def test_queue_that_is_not_there_is_empty(queues):
    """Looking creates nothing."""
    assert queues.length(poison_of("items")) == 0
    assert queues.peek(poison_of("items")) == []


def test_send_whose_answer_was_lost_is_repeated(queues, edge):
    """Two copies are harmless, none would not be."""
    queues.create_all(["runs"])
    edge.faults = [("POST", "lose")]

    queues.send(RunMessage(run_id="r"))

    assert queues.length("runs") == 2


def test_send_that_never_arrives_is_a_state_error(queues, edge):
    """Repeats are bounded."""
    edge.faults = [("POST", "refuse")] * 20

    with pytest.raises(StateError, match="queue runs"):
        queues.send(RunMessage(run_id="r"))


@pytest.mark.parametrize(("filler", "fits"), [("x", 65_000), ("<", 16_000)], ids=["plain", "escaped in XML"])
def test_message_above_the_queues_limit_is_refused(queues: Queues, edge, filler, fits):
    """64 KiB as sent; the message's content is not shown."""
    queues.send(PageMessage(run_id="r", link=filler * fits))
    sent = len(edge.requests)

    with pytest.raises(StateError, match="65,536") as caught:
        queues.send(PageMessage(run_id="r", link=filler * MAX_BODY_BYTES))

    assert filler * 3 not in str(caught.value)
    assert len(edge.requests) == sent


def test_record_that_fits_travels(queues):
    """Up to 40 KiB a message stays as it is."""
    message = items(item(text="x" * 30_000))

    assert fit(message) is message


def test_record_that_does_not_fit_stays_at_home(queues):
    """Its key travels alone, without what was prepared."""
    message = items(item(text="ä" * 30_000))

    assert fit(message).items == [ItemModel(key="C1")]


def test_largest_records_stay_at_home_first(queues):
    """The others keep their place."""
    message = items(item("C1"), item("C2", "x" * 35_000), item("C3", "x" * 30_000))

    fitted = fit(message)

    assert fitted.items == [message.items[0], ItemModel(key="C2"), message.items[2]]
    assert sent_bytes(fitted.body()) <= 40 * 1024


def test_message_sent_again_keeps_its_first_id():
    """Claims belong to the id that first carried the work; only failures count."""
    first = RunMessage(run_id="r")

    waited = again(first, own_id="m1", failed=False, now=NOON, reason="claim_held", problem="x" * 5000)
    failed = again(waited, own_id="m2", failed=True, now=NOON + timedelta(hours=1), reason="rejected", problem="no")

    assert (waited.first_id, waited.attempt, waited.first_sent_at, len(waited.problem)) == ("m1", 1, NOON, 1000)
    assert (failed.first_id, failed.attempt, failed.first_sent_at, failed.reason) == ("m1", 2, NOON, "rejected")


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="nothing"),
        pytest.param("hello secret", id="no JSON"),
        pytest.param(b"\xff\xfe", id="no text"),
        pytest.param("[" * 100_000, id="deep"),
        pytest.param('"secret"', id="no object"),
        pytest.param('{"run_id": "secret"}', id="no version"),
        pytest.param('{"schema_version": 1, "secret": 1}', id="no run"),
    ],
)
def test_foreign_message_is_refused(text):
    """Whatever stands in the queue, the answer is one error that does not repeat it."""
    with pytest.raises(MappingError) as caught:
        parse(RunMessage, text)

    assert caught.value.code == "not_ours"
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("model", MESSAGES, ids=lambda model: model.QUEUE)
def test_message_of_a_newer_app_stays_in_its_queue(model: type[Message]) -> None:
    """Two versions run side by side while one is deployed: what the older one cannot read is not its to drop."""
    with pytest.raises(StateError) as caught:
        parse(model, '{"schema_version": 99, "run_id": "secret"}')

    assert caught.value.code == "newer_schema"
    assert "deploy" in caught.value.message
    assert "secret" not in str(caught.value)


def test_message_of_a_newer_app_is_not_taken_along(queues: Queues) -> None:
    """It stays where it is, hidden for a lease, and those behind it are taken."""
    queues.send(event("newer").model_copy(update={"schema_version": 99}))
    queues.send(event("ours"))

    taken = queues.take_more(EventMessage, 10, lease_s=60)

    assert [each.message.event_id for each in taken] == ["ours"]
    assert queues.length(EventMessage.QUEUE) == 2


class OneEvent(Message):
    """The message as an app has it that knows of one event only."""

    QUEUE: ClassVar[str] = "events"

    event_id: str


def test_message_of_several_events_is_refused_by_an_app_that_knows_of_one() -> None:
    """Else it would work the first and end the message: the others were acknowledged, and would be lost."""
    several = event("first").model_copy(update={"others": [event("second")]})

    with pytest.raises(StateError, match="newer"):
        parse(OneEvent, several.body())


class Hanging(RequestsTransport):
    """Storage that never answers: uses up all the time it is given, without making anybody wait for it."""

    def __init__(self) -> None:
        super().__init__()
        self.granted_s: list[float] = []

    def send(self, request, **options):
        self.granted_s.append(options["connection_timeout"] + options["read_timeout"])
        raise ServiceResponseTimeoutError("no answer")


def test_events_that_wait_together_fill_few_messages() -> None:
    """None is lost on the way, and no message holds more than it may."""
    events = [(event(f"e{number}"), 300) for number in range(MOST_EVENTS + 1)]
    events.append((event("large"), MOST_EVENTS_BYTES))

    messages = list(packed(events))

    assert [1 + len(message.others) for message in messages] == [MOST_EVENTS, 1, 1]
    assert [each.event_id for message in messages for each in (message, *message.others)] == [
        each.event_id for each, _ in events
    ]


def test_bounded_send_is_tried_once_within_its_time(azurite, prefix):
    """A caller who cannot wait gets a StateError: one request, and connecting and reading together stay below the bound."""
    edge = Hanging()

    with connect_queues(azurite.connection_string, transport=edge) as service, pytest.raises(StateError):
        Queues(service, prefix).send(RunMessage(run_id="r"), timeout_s=5)

    assert len(edge.granted_s) == 1
    assert 0 < edge.granted_s[0] <= 5


class Dropping(RequestsTransport):
    """Storage that has just closed the connection which the client kept: once, or at every call."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    def send(self, request, **options):
        self.times -= 1
        if self.times >= 0:
            raise ServiceResponseError("connection reset by peer")
        return super().send(request, **options)


def test_bounded_send_outlives_a_connection_that_storage_had_closed(azurite, prefix):
    """A pause longer than storage keeps connections must not cost a caller the answer."""
    with connect_queues(azurite.connection_string) as service:
        Queues(service, prefix).create_all(["runs"])

    with connect_queues(azurite.connection_string, transport=Dropping(1)) as service:
        Queues(service, prefix).send(RunMessage(run_id="r"), timeout_s=60)

        assert Queues(service, prefix).length("runs") == 1


def test_bounded_send_gives_up_when_connections_keep_dropping(azurite, prefix):
    """Storage that drops the second connection too is away."""
    with connect_queues(azurite.connection_string, transport=Dropping(9)) as service, pytest.raises(StateError):
        Queues(service, prefix).send(RunMessage(run_id="r"), timeout_s=60)


def test_bounded_send_creates_its_queue(queues, edge):
    """A queue that is not there yet is made within the same bound."""
    queues.send(RunMessage(run_id="r"), timeout_s=30)

    assert queues.length("runs") == 1
    assert len(edge.requests) == 4


def test_bounded_send_ends_although_the_other_end_hangs(azurite, prefix):
    """The SDK's own transport keeps to the bound when a server takes the connection and then says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        text = f"DefaultEndpointsProtocol=http;AccountName=a;AccountKey=a2V5;QueueEndpoint=http://127.0.0.1:{port}/a;"

        with connect_queues(text) as service, pytest.raises(StateError, match="no answer"):
            Queues(service, prefix).send(RunMessage(run_id="r"), timeout_s=0.2)
