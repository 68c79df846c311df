"""What stands in the simulated Marketo before the first sync: leads and companies of an earlier tool, strangers, doubles.

Given the contacts and accounts of Dynamics 365, so that some belong together; the same contacts give the same records.
"""

from collections.abc import Mapping
from datetime import timedelta

from sandbox.dynamics365 import Dynamics365
from sandbox.marketo import Marketo

EVERY_LEAD, EVERY_DOUBLE, EVERY_COMPANY = 4, 23, 5  # of the contacts with an email, of the accounts
STRANGERS = 12


def seed(marketo: Marketo, dynamics: Dynamics365) -> Mapping[str, list[str]]:
    """Fill an instance; return the ids of contacts with a lead and with two, and of accounts with a company."""
    long_ago = marketo.clock.now() - timedelta(days=500)
    known: dict[str, list[str]] = {"lead": [], "doubled": [], "company": []}
    for number, account in enumerate(dynamics.rows("account")):
        if number % EVERY_COMPANY == 2:
            named = {"company": f"{account['name']} (old name)", "externalCompanyId": account["accountid"]}
            marketo.insert("companies", long_ago, **named, billingCity="Elsewhere")
            known["company"].append(account["accountid"])
    for number, contact in enumerate(row for row in dynamics.rows("contact") if row["emailaddress1"]):
        email, last_name = contact["emailaddress1"], contact["lastname"]
        if number % EVERY_DOUBLE == 9:
            for first_name in ("Newsletter", "Webinar"):
                marketo.insert("leads", long_ago, email=email, firstName=first_name, lastName=last_name)
            known["doubled"].append(contact["contactid"])
        elif number % EVERY_LEAD == 1:
            flags = {"unsubscribed": number % 3 == 0, "emailInvalid": number % 7 == 0}
            marketo.insert("leads", long_ago, email=email.swapcase(), lastName=last_name, city="Elsewhere", **flags)
            known["lead"].append(contact["contactid"])
    for number in range(STRANGERS):
        stranger = {"firstName": "Visitor", "lastName": str(number), "email": f"visitor{number}@elsewhere.example"}
        marketo.insert("leads", long_ago, **stranger)
    return known
