"""A Marketo connection's settings, and the client that is built from them."""

import pytest

from shared.clients.marketo import Marketo
from shared.connections import MarketoConnection
from shared.errors import ConfigError
from shared.services import Services, _budgets, _wait_s
from shared.settings import load_settings
from shared.state.permits import WAIT_S
from shared.state.shares import Limits
from tests.unit.test_settings import GOOD, SECRET, connection

MARKETO = {
    "ENVIRONMENT": "test",
    "URL": "https://123-ABC-456.mktorest.com/",
    "CLIENT_ID": "app",
    "CLIENT_SECRET": SECRET,
}


def load(**changes: str):
    return load_settings(GOOD | connection("marketo", **MARKETO | changes))


def test_marketo_connection_has_cautious_defaults():
    """Half of what the vendor allows all tools of an instance, and more time than its longest call."""
    marketo = load().connection("marketo")

    assert isinstance(marketo, MarketoConnection)
    assert marketo.url == "https://123-abc-456.mktorest.com"
    assert (marketo.calls_per_20s, marketo.concurrency, marketo.daily_budget) == (50, 5, 25_000)
    assert (marketo.lookup_field, marketo.read_timeout_s, marketo.transaction_s) == ("email", 100, 90)
    assert SECRET not in repr(marketo)


@pytest.mark.parametrize(
    "changes",
    [
        {"URL": "https://contoso.mktorest.com"},
        {"URL": "https://123-ABC-456.mktorest.com.evil.example"},
        {"URL": "https://123-ABC-456.mktorest.com/rest"},
        {"URL": "http://123-ABC-456.mktorest.com"},
        {"CONCURRENCY": "11"},
        {"CALLS_PER_20S": "101"},
        {"LOOKUP_FIELD": "a b"},
        {"WEB_URL": "app-ab12.marketo.com"},
        {"WEB_URL": "http://app-ab12.marketo.com"},
    ],
)
def test_marketo_connection_refuses_what_the_vendor_would(changes):
    """Other hosts would be handed the secret; other limits would be refused with 606 and 615."""
    with pytest.raises(ConfigError, match=f"CONNECTIONS__MARKETO__{next(iter(changes))}"):
        load(**changes)


@pytest.mark.parametrize(("setting", "sent"), [("email", "email"), ("instance", "")])
def test_marketo_client_is_built_from_its_connection(setting, sent):
    """The client gets the address for people, and its field for duplicates or none."""
    services = Services(load(LOOKUP_FIELD=setting, WEB_URL="https://app-ab12.marketo.com/"))

    client = services.system("marketo")

    assert isinstance(client, Marketo)
    assert client._lookup_field == sent
    assert client.transaction_s == 90
    assert client.url("lead", "7").startswith("https://app-ab12.marketo.com/lead")


def test_call_waits_for_the_next_twenty_seconds_and_never_for_the_next_day():
    """Work that is put back is missing to a worker that still has calls; a day's end is hours away, and nobody waits there."""
    budgets = _budgets(load().connection("marketo"))

    waits = [_wait_s(Limits(5, budgets=each)) for each in ((), budgets[1:], budgets)]

    assert [budget.seconds for budget in budgets] == [20.0, 0.0]
    assert waits == [WAIT_S, WAIT_S, 22.0]
