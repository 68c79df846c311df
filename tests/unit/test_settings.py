"""Settings: what is read, what is refused, and in which words."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from shared.connections import Dynamics365Connection, ServiceNowConnection
from shared.errors import ConfigError
from shared.ncrontab import check_ncrontab
from shared.settings import Settings, load_settings
from shared.settings_page import settings_table

ROOT = Path(__file__).parents[2]
SECRET = "correct-horse-battery-staple-0001"
GOOD = {
    "AzureWebJobsStorage": "UseDevelopmentStorage=true",
    "APP_URL": "https://concord.example.com/",
    "ALLOWED_MAIL_DOMAINS": "example.com, Example.org",
    "DIGEST_KEYS": f"k1:{SECRET}",
    "MAIL__HOST": "smtp.example.com",
    "MAIL__SENDER": "concord@example.com",
}
DYNAMICS = {
    "ENVIRONMENT": "test",
    "URL": "https://contoso.crm4.dynamics.com/",
    "TENANT_ID": "contoso.example.com",
    "CLIENT_ID": "app",
    "CLIENT_SECRET": SECRET,
}
SERVICENOW = {
    "ENVIRONMENT": "production",
    "URL": "https://contoso.service-now.com",
    "CLIENT_ID": "app",
    "CLIENT_SECRET": SECRET,
}


def connection(name: str, **fields: str) -> dict[str, str]:
    return {f"CONNECTIONS__{name.upper()}__{field}": value for field, value in fields.items()}


def faults(environ: dict[str, str]) -> str:
    with pytest.raises(ConfigError) as caught:
        load_settings(environ)
    return caught.value.message


def test_settings_an_empty_environment_names_everything_at_once():
    """All missing settings stand in one error, each under its full name with an example."""
    message = faults({})

    lines = message.splitlines()
    assert lines[0].startswith("6 settings are missing")
    assert [line.split()[1] for line in lines[1:]] == [
        "ALLOWED_MAIL_DOMAINS",
        "APP_URL",
        "AzureWebJobsStorage",
        "DIGEST_KEYS",
        "MAIL__HOST",
        "MAIL__SENDER",
    ]
    assert all("is missing. Wanted: " in line and " Example: " in line for line in lines[1:])


def test_settings_good_values_are_read_and_normalised():
    """Names are read without regard to case; defaults fill the rest."""
    settings = load_settings(
        GOOD
        | {"notify": "lead@Example.com", "NOTIFY__case_to_incident": "a@example.com, b@example.org,a@example.com"}
        | {"RECIPE__DEFAULT_CALLER": "concord.default", "ALLOW_MIXED_ENVIRONMENTS": "a_to_b, c_to_d"}
    )

    assert settings.app_url == "https://concord.example.com"
    assert settings.allowed_mail_domains == ("example.com", "example.org")
    assert settings.recipients("contact_to_lead") == ("lead@example.com",)
    assert settings.recipients("case_to_incident") == ("a@example.com", "b@example.org")
    assert settings.recipe_values == {"DEFAULT_CALLER": "concord.default"}
    assert settings.allow_mixed_environments == ("a_to_b", "c_to_d")
    assert (settings.bulk_above, settings.max_new_users, settings.max_attempts) == (1000, 200, 5)
    assert (settings.max_wait_s, settings.queue_lease_s) == (86400, 600)
    assert settings.mail.port == 587
    assert settings.zone.key == "UTC"


def test_settings_nobody_is_notified_unless_named():
    """Without NOTIFY a recipe has no recipients: the caller decides whether that is an error."""
    settings = load_settings(GOOD)

    assert settings.recipients("case_to_incident") == ()


def test_settings_connections_get_the_model_of_their_system():
    """A connection's name is its system unless SYSTEM says otherwise."""
    settings = load_settings(
        GOOD
        | connection("dynamics365", **DYNAMICS)
        | connection("servicenow", **SERVICENOW)
        | connection("servicenow_vendor", SYSTEM="servicenow", **SERVICENOW)
    )

    dynamics, vendor = settings.connection("dynamics365"), settings.connection("servicenow_vendor")
    assert isinstance(dynamics, Dynamics365Connection)
    assert dynamics.url == "https://contoso.crm4.dynamics.com"
    assert dynamics.organization == "contoso.crm4.dynamics.com"
    assert (dynamics.page_size, dynamics.concurrency) == (100, 8)
    assert isinstance(vendor, ServiceNowConnection)
    assert (vendor.instance, vendor.concurrency, vendor.transaction_s) == ("contoso", 4, 60)


def test_settings_unknown_connection_names_the_nearest():
    """Asking for a connection that is not there says which one was probably meant."""
    settings = load_settings(GOOD | connection("servicenow", **SERVICENOW))

    with pytest.raises(ConfigError, match=r"did you mean servicenow.*CONNECTIONS__SERVICENOV__URL"):
        settings.connection("servicenov")


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        pytest.param("APP_URL", "concord.example.com", "begins with https://", id="no scheme"),
        pytest.param("APP_URL", "http://concord.example.com", "plain http is only for this machine", id="plain http"),
        pytest.param("APP_URL", "https://u:p@concord.example.com", "no user name", id="credentials"),
        pytest.param("TIME_ZONE", "Mars/Olympus", "no zone of the IANA database", id="zone"),
        pytest.param("TIME_ZONE", "../etc/passwd", "no zone of the IANA database", id="zone that is a path"),
        pytest.param("DAILY_SYNC_SCHEDULE", "0 6 * * *", "should have six fields", id="five fields"),
        pytest.param("DAILY_SYNC_SCHEDULE", "0 0 25 * * *", "as its hour", id="hour 25"),
        pytest.param("ALLOWED_MAIL_DOMAINS", "@example.com", "no domain", id="domain with @"),
        pytest.param("NOTIFY", "lead@elsewhere.com", "may only go to example.com or example.org", id="outside"),
        pytest.param("NOTIFY__CASE_TO_INCIDENT", "lead", "not an email address", id="no address"),
        pytest.param("MAIL__PORT", "70000", "less than or equal to 65535", id="port"),
        pytest.param("MAIL__SECURITY", "ssl", "'implicit_tls', 'starttls' or 'none'", id="security"),
        pytest.param("MAIL__USER", "concord", "MAIL__PASSWORD is missing, because MAIL__USER is set", id="no password"),
        pytest.param("MAIL__PASWORD", "x", "did you mean PASSWORD?", id="misspelt"),
        pytest.param("DIGEST_KEYS", "k1:short", "at least 32 characters in the secret of k1", id="short secret"),
        pytest.param("DIGEST_KEYS", SECRET, "should be id:secret", id="no id"),
        pytest.param("DIGEST_KEYS", f"a:{SECRET},a:{SECRET}", "different ids", id="same id"),
        pytest.param("DIGEST_KEYS", f"a:{SECRET},b:{SECRET},c:{SECRET}", "two keys at the most", id="three keys"),
        pytest.param("BULK_ABOVE", "-1", "greater than or equal to 0", id="negative"),
        pytest.param("MAX_ATTEMPTS", "many", "MAX_ATTEMPTS should be a whole number. Wanted", id="no number"),
        pytest.param("ALLOW_UNLISTED_HOSTS", "perhaps", "should be true or false. Wanted", id="no yes or no"),
        pytest.param(
            "CONNECTIONS__ORACLE__URL", "https://x.example", "CONNECTIONS__ORACLE__SYSTEM should name", id="system"
        ),
    ],
)
def test_settings_a_wrong_value_is_one_sentence_that_names_it(name, value, says):
    """A wrong value gives one sentence, which says what it should be."""
    message = faults(GOOD | {name: value})

    assert message.startswith("One setting is")
    assert name.partition("__")[0] in message
    assert says in message


@pytest.mark.parametrize(
    ("auth", "missing"),
    [
        pytest.param("client_credentials", {"CLIENT_ID", "CLIENT_SECRET"}, id="client credentials"),
        pytest.param("password", {"CLIENT_ID", "CLIENT_SECRET", "USER", "PASSWORD"}, id="password"),
        pytest.param("basic", {"USER", "PASSWORD"}, id="basic"),
    ],
)
def test_settings_servicenow_needs_what_its_sign_in_needs(auth, missing):
    """The way to sign in decides which credentials are required."""
    fields = {"ENVIRONMENT": "test", "URL": SERVICENOW["URL"], "AUTH": auth}

    message = faults(GOOD | connection("servicenow", **fields))

    assert {line.split()[1].rpartition("__")[2] for line in message.splitlines()[1:]} == missing
    assert f"because AUTH is {auth}" in message


@pytest.mark.parametrize(
    "url",
    [
        pytest.param("https://contoso.service-now.com.evil.example", id="suffix"),
        pytest.param("https://evil.example/contoso.service-now.com", id="path"),
        pytest.param("https://contoso.service-now.com@evil.example", id="user name"),
        pytest.param("https://169.254.169.254", id="metadata service"),
        pytest.param("http://localhost:7103", id="this machine"),
        pytest.param("https://service-now.com", id="no instance"),
    ],
)
def test_settings_connections_stay_on_the_vendors_hosts(url):
    """Credentials go to the vendor's own hosts only."""
    message = faults(GOOD | connection("servicenow", **SERVICENOW | {"URL": url}))

    assert "CONNECTIONS__SERVICENOW__URL" in message
    assert message.startswith("One setting is")


def test_settings_the_sign_in_address_is_guarded_too():
    """The application's secret goes to Microsoft's sign-in hosts only."""
    message = faults(GOOD | connection("dynamics365", **DYNAMICS, AUTHORITY="https://login.evil.example"))

    assert "CONNECTIONS__DYNAMICS365__AUTHORITY is not one of the vendor's addresses" in message


@pytest.mark.parametrize("name", ["ALLOW_UNLISTED_HOSTS", "CONNECTIONS__SERVICENOW__UNLISTED_HOST"])
def test_settings_other_hosts_can_be_allowed(name):
    """Unlisted hosts are allowed for all connections or for one; plain http stays on this machine."""
    own = GOOD | {name: "true"}

    settings = load_settings(own | connection("servicenow", **SERVICENOW | {"URL": "http://localhost:7103"}))

    assert settings.connection("servicenow").url == "http://localhost:7103"
    assert "plain http" in faults(own | connection("servicenow", **SERVICENOW | {"URL": "http://10.0.0.7"}))


def test_settings_storage_by_identity_needs_both_addresses():
    """Without a connection string queues and tables each need their address."""
    identity = {name: value for name, value in GOOD.items() if name != "AzureWebJobsStorage"} | {
        "AzureWebJobsStorage__queueServiceUri": "https://contoso.queue.core.windows.net",
        "AzureWebJobsStorage__credential": "managedidentity",
    }
    tables = {"AzureWebJobsStorage__tableServiceUri": "https://contoso.table.core.windows.net"}

    settings = load_settings(identity | tables)

    assert settings.storage.connection_string is None
    assert settings.storage.queue_service_uri == "https://contoso.queue.core.windows.net"
    assert "AzureWebJobsStorage__tableServiceUri is missing, because" in faults(identity)


def test_settings_an_unresolved_key_vault_reference_is_reported_once():
    """Azure hands a reference that it cannot resolve to the app as text: that is no secret."""
    reference = "@Microsoft.KeyVault(SecretUri=https://vault.example/secrets/x)"

    message = faults(
        GOOD
        | {"DIGEST_KEYS": reference, "UNRELATED": reference}
        | connection("servicenow", **SERVICENOW | {"CLIENT_SECRET": reference})
    )

    assert message.startswith("2 settings are")
    assert "DIGEST_KEYS is a Key Vault reference that Azure did not resolve" in message
    assert "CONNECTIONS__SERVICENOW__CLIENT_SECRET is a Key Vault reference" in message


@pytest.mark.parametrize("left", ["<secret>", "k1:<32 or more random characters>", "<>"])
def test_settings_a_placeholder_is_no_value(left: str):
    """What was copied from an example and never filled in is told, and not sent to a vendor as a secret."""
    message = faults(GOOD | connection("servicenow", **SERVICENOW | {"CLIENT_SECRET": left}))

    assert "CONNECTIONS__SERVICENOW__CLIENT_SECRET still holds a placeholder" in message


def test_settings_a_misspelt_name_is_logged(caplog: pytest.LogCaptureFixture):
    """A name that is nearly one of ours would be passed over in silence; what other programs set is not ours to judge."""
    load_settings(GOOD | {"MAX_NEW_USER": "3", "NOTFIY": "a@example.com", "WEBSITE_TIME_ZONE": "UTC", "PATH": "/bin"})

    assert [(each.setting, each.nearest) for each in caplog.records] == [
        ("MAX_NEW_USER", "MAX_NEW_USERS"),
        ("NOTFIY", "NOTIFY"),
    ]


def test_settings_secrets_are_in_no_text():
    """Neither `repr` nor an error shows a secret, and no cause is chained that would."""
    environ = GOOD | connection("servicenow", **SERVICENOW) | {"MAIL__USER": "u", "MAIL__PASSWORD": SECRET}

    settings = load_settings(environ)
    with pytest.raises(ConfigError) as caught:
        load_settings(environ | {"DIGEST_KEYS": f"bad id:{SECRET}", "MAX_ATTEMPTS": SECRET})

    assert SECRET not in repr(settings)
    assert SECRET not in str(caught.value)
    assert SECRET not in repr(caught.value.__context__)
    assert SECRET not in str(caught.value.__context__)


def test_settings_are_frozen_and_blind_to_the_process(monkeypatch):
    """Settings do not change, and only what is handed in is read."""
    monkeypatch.setenv("MAX_ATTEMPTS", "9")

    settings = load_settings(GOOD)

    assert settings.max_attempts == 5
    with pytest.raises(ValidationError):
        settings.max_attempts = 3
    assert settings == load_settings(GOOD)


@pytest.mark.parametrize(
    "schedule", ["0 0 6 * * *", "*/5 * * * * *", "0 30 6 * * mon-fri", "0 0 6,18 1-15 jan,jul *", "0 10-50/10 * * * 0"]
)
def test_ncrontab_accepts_what_the_host_accepts(schedule):
    """Six fields of values, lists, ranges, steps and names."""
    assert check_ncrontab(schedule) == schedule


@pytest.mark.parametrize(
    "schedule",
    [
        "",
        "0 6 * * *",
        "60 0 6 * * *",
        "0 0 6 0 * *",
        "0 0 6 * 13 *",
        "0 0 6 * * 7",
        "0 0 18-6 * * *",
        "0 0 6 * * fri-mon",
        "0 0 x * * *",
        "0 0 6 * foo *",
        "0 0 */0 * * *",
        "0 0 6, * * *",
        "0 ٣ 6 * * *",
        "00:05:00",
    ],
)
def test_ncrontab_refuses_the_rest(schedule):
    """What the host could not read is refused at start."""
    with pytest.raises(ValueError, match="should"):
        check_ncrontab(schedule)


@given(
    st.dictionaries(
        st.sampled_from([*sorted(GOOD), "CONNECTIONS__X__URL", "NOTIFY", "RECIPE", "MAIL"]), st.text(max_size=40)
    )
)
def test_settings_any_values_give_settings_or_a_config_error(environ):
    """Whatever the values are, loading ends in settings or in a ConfigError."""
    try:
        settings = load_settings(environ)
    except ConfigError:
        return

    assert isinstance(settings, Settings)


def test_settings_example_is_complete_and_explained():
    """The example loads as it is, and every name in it has its row in the settings page."""
    values = json.loads((ROOT / "local.settings.example.json").read_text())["Values"]

    settings = load_settings(values)

    page = settings_table()
    assert set(settings.connections) == {"dynamics365", "marketo", "servicenow"}
    for name in values:
        parts = name.split("__")
        shown = f"CONNECTIONS__<NAME>__{parts[-1]}" if parts[0] == "CONNECTIONS" else name
        assert f"`{shown}`" in page, name


def test_settings_page_is_fresh():
    """docs/settings.md is what the descriptions print."""
    assert (ROOT / "docs" / "settings.md").read_text() == settings_table()
