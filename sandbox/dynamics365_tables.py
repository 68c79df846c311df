"""The tables of the Dynamics 365 simulator: columns, options and navigation properties, and their EntityDefinitions.

Lengths, option values and names are those of the fact sheet (sections 2.2 and 5); tables not described there hold only what the others refer to.
"""

import dataclasses
import uuid
from collections.abc import Iterable
from typing import Any

NAMESPACE = uuid.UUID("5f0c7a34-1b1f-4c7e-9a3c-0d365d365d36")
EDM_TYPES = {
    "String": "String", "Memo": "String", "Integer": "Int32", "Picklist": "Int32", "State": "Int32", "Status": "Int32",
    "BigInt": "Int64", "DateTime": "DateTimeOffset", "Lookup": "Guid", "Customer": "Guid", "Owner": "Guid",
    "Uniqueidentifier": "Guid", "Boolean": "Boolean", "Money": "Decimal", "Double": "Double",
}  # fmt: skip
LOOKUPS = frozenset({"Lookup", "Customer", "Owner"})
CHOICES = frozenset({"Picklist", "State", "Status"})


@dataclasses.dataclass(frozen=True)
class Option:
    """One value of a choice column."""

    value: int
    label: str
    state: int | None = None  # the state that a status reason belongs to
    default_status: int | None = None  # of a state


@dataclasses.dataclass(frozen=True)
class Column:
    """One column under its logical name."""

    name: str
    kind: str  # AttributeType of the metadata
    max_length: int | None = None
    targets: tuple[str, ...] = ()  # logical names that a lookup can hold
    options: tuple[Option, ...] = ()
    create: bool = True
    update: bool = True
    required: str = "None"

    @property
    def is_lookup(self) -> bool:
        """Tell whether the value is a reference to a row."""
        return self.kind in LOOKUPS

    @property
    def property_name(self) -> str:
        """Return the name under which the Web API shows the column."""
        return f"_{self.name}_value" if self.is_lookup else self.name

    @property
    def edm(self) -> str:
        """Return the OData type without its namespace."""
        return EDM_TYPES[self.kind]


@dataclasses.dataclass(frozen=True)
class Navigation:
    """A navigation property: through a lookup to one row, or back from a lookup to many."""

    name: str
    target: str  # logical name; "principal" for ownerid
    column: str  # logical name of the lookup, on the target when many
    many: bool = False


@dataclasses.dataclass
class Table:
    """One table; columns and navigation properties by name."""

    name: str
    schema_name: str
    set_name: str
    key: str
    label: str  # primary name column
    columns: dict[str, Column]
    navigations: dict[str, Navigation]
    also_returned: tuple[str, ...] = ()  # users and teams come with `ownerid` too

    def property(self, name: str) -> Column | None:
        """Return the column that the Web API shows under a name."""
        column = self.columns.get(name[1:-6] if name.startswith("_") and name.endswith("_value") else name)
        return column if column and column.property_name == name else None

    def status_options(self, state: int) -> list[int]:
        """Return the status reasons of a state, its default first."""
        default = next((o.default_status for o in self.columns["statecode"].options if o.value == state), None)
        reasons = [o.value for o in self.columns["statuscode"].options if o.state == state]
        return sorted(reasons, key=lambda value: value != default)


def _text(name: str, length: int, **facts: Any) -> Column:
    return Column(name, "String", length, **facts)


def _memo(name: str, length: int = 2000) -> Column:
    return Column(name, "Memo", length)


def _lookup(name: str, *targets: str, kind: str = "Lookup", **facts: Any) -> Column:
    return Column(name, kind, targets=targets, **facts)


def _choice(name: str, kind: str = "Picklist", **labels: int) -> Column:
    return Column(name, kind, options=tuple(Option(value, label.replace("_", " ")) for label, value in labels.items()))


def _read_only(name: str, kind: str, length: int | None = None, targets: tuple[str, ...] = ()) -> Column:
    return Column(name, kind, length, targets=targets, create=False, update=False)


def _stamps(owned: bool = True) -> list[Column]:
    columns = [
        _read_only("createdon", "DateTime"),
        _read_only("modifiedon", "DateTime"),
        _read_only("createdby", "Lookup", targets=("systemuser",)),
        _read_only("modifiedby", "Lookup", targets=("systemuser",)),
        _read_only("versionnumber", "BigInt"),
    ]
    if owned:
        columns += [
            _lookup("ownerid", "systemuser", "team", kind="Owner", required="SystemRequired"),
            _read_only("owninguser", "Lookup", targets=("systemuser",)),
            _read_only("owningteam", "Lookup", targets=("team",)),
            _read_only("owningbusinessunit", "Lookup", targets=("businessunit",)),
        ]
    return columns


def _active_inactive() -> list[Column]:
    return [
        Column("statecode", "State", options=(Option(0, "Active", default_status=1), Option(1, "Inactive", default_status=2)), create=False),
        Column("statuscode", "Status", options=(Option(1, "Active", 0), Option(2, "Inactive", 1))),
    ]  # fmt: skip


def _address() -> list[Column]:
    lines = [_text(f"address1_line{number}", 250) for number in (1, 2, 3)]
    places = {"city": 80, "stateorprovince": 50, "country": 80, "postalcode": 20}
    return lines + [_text(f"address1_{name}", length) for name, length in places.items()]


def _incident() -> list[Column]:
    return [
        _text("ticketnumber", 100, update=False),
        _text("title", 200, required="ApplicationRequired"),
        _memo("description"),
        _choice("caseorigincode", Phone=1, Email=2, Web=3, Facebook=2483, Twitter=3986),
        _choice("prioritycode", High=1, Normal=2, Low=3),
        _choice("severitycode", Default_Value=1),
        _choice("casetypecode", Question=1, Problem=2, Request=3),
        Column(
            "statecode",
            "State",
            options=(
                Option(0, "Active", default_status=1),
                Option(1, "Resolved", default_status=5),
                Option(2, "Canceled", default_status=6),
            ),
            create=False,
        ),
        Column(
            "statuscode",
            "Status",
            options=(
                Option(1, "In Progress", 0),
                Option(2, "On Hold", 0),
                Option(3, "Waiting for Details", 0),
                Option(4, "Researching", 0),
                Option(5, "Problem Solved", 1),
                Option(1000, "Information Provided", 1),
                Option(6, "Cancelled", 2),
                Option(2000, "Merged", 2),
            ),
        ),
        _lookup("customerid", "contact", "account", kind="Customer", required="SystemRequired"),
        _lookup("primarycontactid", "contact"),
        _read_only("masterid", "Lookup", targets=("incident",)),
        _read_only("merged", "Boolean"),
        *_stamps(),
    ]


def _contact() -> list[Column]:
    return [
        _text("firstname", 50),
        _text("lastname", 50, required="ApplicationRequired"),
        _read_only("fullname", "String", 160),
        _text("emailaddress1", 100),
        _text("telephone1", 50),
        _text("mobilephone", 50),
        _text("fax", 50),
        _text("jobtitle", 100),
        _memo("description"),
        *_address(),
        _text("websiteurl", 200),
        _lookup("parentcustomerid", "contact", "account", kind="Customer"),
        *_active_inactive(),
        *_stamps(),
    ]


def _account() -> list[Column]:
    return [
        _text("name", 160, required="ApplicationRequired"),
        _text("accountnumber", 20),
        _text("emailaddress1", 100),
        _text("telephone1", 50),
        _text("fax", 50),
        _text("sic", 20),
        _text("websiteurl", 200),
        _memo("description"),
        Column("numberofemployees", "Integer"),
        Column("revenue", "Money"),
        _lookup("transactioncurrencyid", "transactioncurrency"),
        *_address(),
        _lookup("primarycontactid", "contact"),
        *_active_inactive(),
        *_stamps(),
    ]


def _systemuser() -> list[Column]:
    return [
        _text("firstname", 256),
        _text("lastname", 256),
        _read_only("fullname", "String", 200),
        _text("internalemailaddress", 100),
        _text("domainname", 1024),
        _text("title", 128),
        Column("isdisabled", "Boolean", create=False),
        Column("applicationid", "Uniqueidentifier"),
        Column("azureactivedirectoryobjectid", "Uniqueidentifier"),
        _lookup("businessunitid", "businessunit"),
        _read_only("ownerid", "Uniqueidentifier"),
        *_stamps(owned=False),
    ]


def _team() -> list[Column]:
    return [
        _text("name", 160),
        _memo("description"),
        _text("emailaddress", 100),
        _choice("teamtype", Owner=0, Access=1, Security_Group=2, Office_Group=3),
        Column("isdefault", "Boolean", create=False, update=False),
        _lookup("businessunitid", "businessunit"),
        _read_only("ownerid", "Uniqueidentifier"),
        *_stamps(owned=False),
    ]


def _annotation() -> list[Column]:
    return [
        _text("subject", 500),
        _memo("notetext", 100_000),
        _text("filename", 255),
        _text("mimetype", 256),
        _memo("documentbody", 1_073_741_823),
        _read_only("isdocument", "Boolean"),
        _lookup("objectid", "incident", "contact", "account"),
        *_stamps(),
    ]


def _incidentresolution() -> list[Column]:
    return [
        _text("subject", 200),
        _memo("description"),
        Column("timespent", "Integer"),
        _lookup("incidentid", "incident", required="SystemRequired"),
        *_stamps(),
    ]


def _name_only() -> list[Column]:
    return [_text("name", 160), *_stamps(owned=False)]


def _transactioncurrency() -> list[Column]:
    return [_text("currencyname", 100), _text("isocurrencycode", 5), *_stamps(owned=False)]


def _organization() -> list[Column]:
    return [
        _text("name", 160, create=False, update=False),
        Column("languagecode", "Integer", create=False, update=False),
        Column("expirechangetrackingindays", "Integer", create=False),
        _read_only("versionnumber", "BigInt"),
    ]


# -- registration of webhooks: only what this stand-in can do is among the options


def _serviceendpoint() -> list[Column]:
    return [
        _text("name", 256, required="ApplicationRequired"),
        _text("url", 2000),
        _choice("contract", Webhook=8),
        _choice("authtype", WebhookKey=4, HttpHeader=5, HttpQueryString=6),
        _memo("authvalue"),  # write-only: the hooks take it away
        _choice("messageformat", Json=2),
        _text("description", 2000),
        *_stamps(owned=False),
    ]


def _sdkmessagefilter() -> list[Column]:
    return [
        _text("name", 256),
        _text("primaryobjecttypecode", 128),
        _lookup("sdkmessageid", "sdkmessage"),
        *_stamps(owned=False),
    ]


def _sdkmessageprocessingstep() -> list[Column]:
    return [
        _text("name", 256),
        _lookup("sdkmessageid", "sdkmessage", required="SystemRequired"),
        _lookup("sdkmessagefilterid", "sdkmessagefilter"),
        _lookup("eventhandler", "plugintype", "serviceendpoint"),
        _choice("stage", PostOperation=40),
        _choice("mode", Asynchronous=1),
        Column("rank", "Integer"),
        _memo("filteringattributes", 100_000),
        Column("asyncautodelete", "Boolean"),
        _choice("supporteddeployment", Server_Only=0),
        Column(
            "statecode",
            "State",
            options=(Option(0, "Enabled", default_status=1), Option(1, "Disabled", default_status=2)),
            create=False,
        ),
        Column("statuscode", "Status", options=(Option(1, "Enabled", 0), Option(2, "Disabled", 1))),
        *_stamps(owned=False),
    ]


def _sdkmessageprocessingstepimage() -> list[Column]:
    return [
        _text("name", 256),
        _text("entityalias", 256),
        _choice("imagetype", PreImage=0, PostImage=1, Both=2),
        _memo("attributes", 100_000),
        _text("messagepropertyname", 256),
        _lookup("sdkmessageprocessingstepid", "sdkmessageprocessingstep", required="SystemRequired"),
        *_stamps(owned=False),
    ]


def _asyncoperation() -> list[Column]:
    states = ("Ready", "Suspended", "Locked", "Completed")
    reasons = {
        0: ("Waiting For Resources", 0), 10: ("Waiting", 1), 20: ("In Progress", 2),
        30: ("Succeeded", 3), 31: ("Failed", 3), 32: ("Canceled", 3),
    }  # fmt: skip
    return [
        _text("name", 256),
        _choice("operationtype", System_Event=1),
        Column("statecode", "State", options=tuple(Option(value, label) for value, label in enumerate(states))),
        Column("statuscode", "Status", options=tuple(Option(value, *facts) for value, facts in reasons.items())),
        _text("messagename", 160),
        _text("primaryentitytype", 64),
        _memo("message", 1_073_741_823),
        _memo("friendlymessage", 1_073_741_823),
        Column("correlationid", "Uniqueidentifier"),
        Column("startedon", "DateTime"),
        Column("completedon", "DateTime"),
        _lookup("owningextensionid", "sdkmessageprocessingstep"),
        *_stamps(owned=False),
    ]


def _table(name: str, schema: str, set_name: str, key: str, label: str, columns: Iterable[Column]) -> Table:
    by_name = {key: Column(key, "Uniqueidentifier", update=False, required="SystemRequired")}
    by_name.update((column.name, column) for column in columns)
    navigations = {}
    for column in by_name.values():
        if column.kind == "Owner":
            navigations[column.name] = Navigation(column.name, "principal", column.name)
        elif len(column.targets) == 1:
            navigations[column.name] = Navigation(column.name, column.targets[0], column.name)
        else:
            for target in column.targets:
                navigations[f"{column.name}_{target}"] = Navigation(f"{column.name}_{target}", target, column.name)
    also = ("ownerid",) if name in {"systemuser", "team"} else ()
    return Table(name, schema, set_name, key, label, by_name, navigations, also)


def build_tables() -> dict[str, Table]:
    """Return a new set of tables by logical name; each simulator may change its own."""
    tables = [
        _table("incident", "Incident", "incidents", "incidentid", "title", _incident()),
        _table("contact", "Contact", "contacts", "contactid", "fullname", _contact()),
        _table("account", "Account", "accounts", "accountid", "name", _account()),
        _table("systemuser", "SystemUser", "systemusers", "systemuserid", "fullname", _systemuser()),
        _table("team", "Team", "teams", "teamid", "name", _team()),
        _table("annotation", "Annotation", "annotations", "annotationid", "subject", _annotation()),
        _table("incidentresolution", "IncidentResolution", "incidentresolutions", "activityid", "subject", _incidentresolution()),
        _table("businessunit", "BusinessUnit", "businessunits", "businessunitid", "name", _name_only()),
        _table("transactioncurrency", "TransactionCurrency", "transactioncurrencies", "transactioncurrencyid", "currencyname", _transactioncurrency()),
        _table("serviceendpoint", "ServiceEndpoint", "serviceendpoints", "serviceendpointid", "name", _serviceendpoint()),
        _table("plugintype", "PluginType", "plugintypes", "plugintypeid", "name", _name_only()),
        _table("sdkmessage", "SdkMessage", "sdkmessages", "sdkmessageid", "name", _name_only()),
        _table("sdkmessagefilter", "SdkMessageFilter", "sdkmessagefilters", "sdkmessagefilterid", "name", _sdkmessagefilter()),
        _table("sdkmessageprocessingstep", "SdkMessageProcessingStep", "sdkmessageprocessingsteps", "sdkmessageprocessingstepid", "name", _sdkmessageprocessingstep()),
        _table("sdkmessageprocessingstepimage", "SdkMessageProcessingStepImage", "sdkmessageprocessingstepimages", "sdkmessageprocessingstepimageid", "name", _sdkmessageprocessingstepimage()),
        _table("asyncoperation", "AsyncOperation", "asyncoperations", "asyncoperationid", "name", _asyncoperation()),
        _table("organization", "Organization", "organizations", "organizationid", "name", _organization()),
    ]  # fmt: skip
    by_name = {table.name: table for table in tables}
    many = {
        "incident": [Navigation("Incident_Annotation", "annotation", "objectid", many=True)],
        "contact": [
            Navigation("Contact_Annotation", "annotation", "objectid", many=True),
            Navigation("incident_customer_contacts", "incident", "customerid", many=True),
        ],
        "account": [
            Navigation("Account_Annotation", "annotation", "objectid", many=True),
            Navigation("incident_customer_accounts", "incident", "customerid", many=True),
            Navigation("contact_customer_accounts", "contact", "parentcustomerid", many=True),
        ],
    }
    for name, navigations in many.items():
        by_name[name].navigations.update((navigation.name, navigation) for navigation in navigations)
    return by_name


# -- EntityDefinitions ----------------------------------------------------------------------------------------------

CAST_PREFIX = "Microsoft.Dynamics.CRM."
BASE_ATTRIBUTE = (
    "MetadataId", "LogicalName", "SchemaName", "AttributeType", "AttributeTypeName", "EntityLogicalName", "DisplayName", "RequiredLevel",
    "IsValidForCreate", "IsValidForUpdate", "IsValidForRead", "IsPrimaryId", "IsPrimaryName", "IsCustomAttribute",
)  # fmt: skip
DERIVED_ATTRIBUTE = {  # what a cast adds to the base; OptionSet only by $expand
    "String": ("MaxLength", "Format"), "Memo": ("MaxLength",), "Lookup": ("Targets",), "Customer": ("Targets",), "Owner": ("Targets",),
    "Integer": ("MinValue", "MaxValue"), "DateTime": ("Format",),
}  # fmt: skip
CASTS = {
    "PicklistAttributeMetadata": ("Picklist",), "StateAttributeMetadata": ("State",), "StatusAttributeMetadata": ("Status",),
    "StringAttributeMetadata": ("String",), "MemoAttributeMetadata": ("Memo",), "LookupAttributeMetadata": ("Lookup", "Customer", "Owner"),
    "IntegerAttributeMetadata": ("Integer",), "DateTimeAttributeMetadata": ("DateTime",), "MoneyAttributeMetadata": ("Money",),
    "BooleanAttributeMetadata": ("Boolean",), "BigIntAttributeMetadata": ("BigInt",), "DoubleAttributeMetadata": ("Double",),
    "UniqueIdentifierAttributeMetadata": ("Uniqueidentifier",),
}  # fmt: skip
ENUM_CASTS = frozenset({"PicklistAttributeMetadata", "StateAttributeMetadata", "StatusAttributeMetadata"})


def metadata_id(*names: str) -> str:
    """Return the fixed id of a table's or column's definition."""
    return str(uuid.uuid5(NAMESPACE, "/".join(names)))


def describe_table(table: Table, change_tracking: bool) -> dict[str, Any]:
    """Return an entity's definition without its attributes."""
    return {
        "MetadataId": metadata_id(table.name),
        "LogicalName": table.name,
        "SchemaName": table.schema_name,
        "EntitySetName": table.set_name,
        "LogicalCollectionName": table.set_name,
        "PrimaryIdAttribute": table.key,
        "PrimaryNameAttribute": table.label,
        "DisplayName": _label(table.schema_name),
        "ChangeTrackingEnabled": change_tracking,
        "IsCustomEntity": False,
    }


def describe_column(table: Table, column: Column) -> dict[str, Any]:
    """Return an attribute's definition with all derived properties, `OptionSet` included."""
    cast = next(name for name, kinds in CASTS.items() if column.kind in kinds)
    definition: dict[str, Any] = {
        "@odata.type": f"#{CAST_PREFIX}{cast}",
        "MetadataId": metadata_id(table.name, column.name),
        "LogicalName": column.name,
        "SchemaName": column.name,
        "AttributeType": column.kind,
        "AttributeTypeName": {"Value": f"{column.kind}Type"},
        "EntityLogicalName": table.name,
        "DisplayName": _label(column.name),
        "RequiredLevel": {"Value": column.required, "CanBeChanged": False},
        "IsValidForCreate": column.create,
        "IsValidForUpdate": column.update,
        "IsValidForRead": True,
        "IsPrimaryId": column.name == table.key,
        "IsPrimaryName": column.name == table.label,
        "IsCustomAttribute": False,
    }
    derived = {
        "MaxLength": column.max_length,
        "Format": "DateAndTime" if column.kind == "DateTime" else "Text",
        "Targets": list(column.targets),
        "MinValue": 0,
        "MaxValue": 1_000_000_000,
    }
    definition.update((name, derived[name]) for name in DERIVED_ATTRIBUTE.get(column.kind, ()))
    if column.kind in CHOICES:
        definition["OptionSet"] = {
            "MetadataId": metadata_id(table.name, column.name, "options"),
            "Name": f"{table.name}_{column.name}",
            "IsGlobal": False,
            "OptionSetType": column.kind,
            "Options": [
                {"Value": option.value, "Label": _label(option.label)}
                | ({} if option.state is None else {"State": option.state})
                | ({} if option.default_status is None else {"DefaultStatus": option.default_status})
                for option in column.options
            ],
        }
    return definition


def _label(text: str) -> dict[str, Any]:
    label = {"Label": text, "LanguageCode": 1033, "IsManaged": True}
    return {"LocalizedLabels": [label], "UserLocalizedLabel": label}
