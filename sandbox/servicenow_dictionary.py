"""The simulated instance's dictionary: which tables there are, their columns, choices and parents, as in a base system.

Types are the vendor's internal types. A row is a flat dict of strings with one entry per column of its table.
"""

import dataclasses
import functools
from collections.abc import Mapping
from types import MappingProxyType

NO_CHOICES: Mapping[str, str] = {}


@dataclasses.dataclass(frozen=True)
class Column:
    """One column as the vendor's dictionary describes it."""

    name: str
    type: str = "string"
    length: int = 40
    reference: str = ""  # table of a reference
    by_name: bool = False  # the reference holds the other row's name instead of its sys_id
    choices: Mapping[str, str] = dataclasses.field(default_factory=dict)  # value to label
    default: str = ""
    mandatory: bool = False
    read_only: bool = False
    unique: bool = False
    owner: str = ""  # table that defines the column

    @property
    def label(self) -> str:
        """Return the column label that people see."""
        return LABELS.get(self.name) or self.name.removeprefix("sys_").replace("_", " ").capitalize()

    @property
    def is_journal(self) -> bool:
        """Tell whether writing appends an entry instead of replacing a value."""
        return self.type == "journal_input"


@dataclasses.dataclass(frozen=True)
class Table:
    """One table: its own columns; those of its parents are inherited."""

    name: str
    label: str
    columns: tuple[Column, ...]
    parent: str = ""
    display: str = "name"  # column that stands for a row
    prefix: str = ""  # of generated numbers
    choices: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)  # for inherited columns
    defaults: Mapping[str, str] = dataclasses.field(default_factory=dict)  # for inherited columns


LABELS = {
    "sys_id": "Sys ID",
    "caller_id": "Caller",
    "cmdb_ci": "Configuration item",
    "contact_type": "Channel",
    "close_code": "Resolution code",
    "close_notes": "Resolution notes",
    "hold_reason": "On hold reason",
    "user_name": "User ID",
    "opened_at": "Opened",
    "resolved_at": "Resolved",
    "closed_at": "Closed",
    "sys_created_on": "Created",
    "sys_created_by": "Created by",
    "sys_updated_on": "Updated",
    "sys_updated_by": "Updated by",
    "sys_mod_count": "Updates",
    "sys_class_name": "Task type",
    "correlation_id": "Correlation ID",
}

LEVELS = {"1": "1 - High", "2": "2 - Medium", "3": "3 - Low"}
PRIORITIES = {"1": "1 - Critical", "2": "2 - High", "3": "3 - Moderate", "4": "4 - Low", "5": "5 - Planning"}
INCIDENT_STATES = {"1": "New", "2": "In Progress", "3": "On Hold", "6": "Resolved", "7": "Closed", "8": "Canceled"}
TASK_STATES = {
    "-5": "Pending",
    "1": "Open",
    "2": "Work in Progress",
    "3": "Closed Complete",
    "4": "Closed Incomplete",
    "7": "Closed Skipped",
}
CHANGE_STATES = {
    "-5": "New",
    "-4": "Assess",
    "-3": "Authorize",
    "-2": "Scheduled",
    "-1": "Implement",
    "0": "Review",
    "3": "Closed",
    "4": "Canceled",
}
HOLD_REASONS = {"1": "Awaiting Caller", "3": "Awaiting Problem", "4": "Awaiting Vendor", "5": "Awaiting Change"}
CHANNELS = {
    "phone": "Phone",
    "email": "Email",
    "self-service": "Self-service",
    "walk-in": "Walk-in",
    "chat": "Chat",
    "virtual_agent": "Virtual Agent",
    "monitoring": "Monitoring",
}
CLOSE_CODES = {
    code: code
    for code in (
        "Duplicate",
        "Known error",
        "No resolution provided",
        "Resolved by caller",
        "Resolved by change",
        "Resolved by problem",
        "Resolved by request",
        "Solution provided",
        "Workaround provided",
        "User error",
    )
}
CATEGORIES = {
    "inquiry": "Inquiry / Help",
    "software": "Software",
    "hardware": "Hardware",
    "network": "Network",
    "database": "Database",
}
APPROVALS = {
    "not requested": "Not Yet Requested",
    "requested": "Requested",
    "approved": "Approved",
    "rejected": "Rejected",
}


def _text(name: str, length: int = 40, **facts: object) -> Column:
    return Column(name, "string", length, **facts)  # type: ignore[arg-type] # facts are Column's own keywords


def _integer(name: str, default: str = "", choices: Mapping[str, str] = NO_CHOICES, **facts: object) -> Column:
    return Column(name, "integer", 40, default=default, choices=choices, **facts)  # type: ignore[arg-type] # as above


def _flag(name: str, default: str = "false") -> Column:
    return Column(name, "boolean", 40, default=default)


def _moment(name: str, **facts: object) -> Column:
    return Column(name, "glide_date_time", 40, **facts)  # type: ignore[arg-type] # as above


def _ref(name: str, table: str, **facts: object) -> Column:
    return Column(name, "reference", 32, reference=table, **facts)  # type: ignore[arg-type] # as above


def _journal(name: str) -> Column:
    return Column(name, "journal_input", 4000)


SYSTEM_COLUMNS = (
    Column("sys_id", "GUID", 32, read_only=True, unique=True),
    _moment("sys_created_on", read_only=True),
    _text("sys_created_by", read_only=True),
    _moment("sys_updated_on", read_only=True),
    _text("sys_updated_by", read_only=True),
    _integer("sys_mod_count", "0", read_only=True),
    _text("sys_tags", 255, read_only=True),
)
SETTABLE_SYSTEM_COLUMNS = ("sys_id", "sys_created_on", "sys_created_by", "sys_updated_on", "sys_updated_by")
CLASS_NAME = Column("sys_class_name", "sys_class_name", 80, read_only=True)
DOMAIN = Column("sys_domain", "domain_id", 32, reference="sys_user_group", default="global", read_only=True)

_ALL = (
    Table(
        "task",
        "Task",
        (
            _text("number"),
            _text("short_description", 160),
            _text("description", 4000),
            _integer("state", "1", TASK_STATES),
            _integer("priority", "4", PRIORITIES),
            _integer("urgency", "3", LEVELS),
            _integer("impact", "3", LEVELS),
            _flag("active", "true"),
            _ref("assigned_to", "sys_user"),
            _ref("assignment_group", "sys_user_group"),
            _moment("opened_at"),
            _ref("opened_by", "sys_user"),
            _moment("closed_at"),
            _ref("closed_by", "sys_user"),
            _text("close_notes", 4000),
            _journal("comments"),
            _journal("work_notes"),
            _text("correlation_id", 100),
            _text("correlation_display", 100),
            _text("contact_type", choices=CHANNELS),
            _ref("company", "core_company"),
            _ref("location", "cmn_location"),
            _ref("cmdb_ci", "cmdb_ci"),
            _ref("business_service", "cmdb_ci_service"),
            Column("watch_list", "glide_list", 4000, reference="sys_user"),
            _ref("parent", "task"),
            _moment("due_date"),
            _text("approval", choices=APPROVALS, default="not requested"),
            _integer("escalation", "0"),
            _flag("made_sla", "true"),
            CLASS_NAME,
            DOMAIN,
        ),
        display="number",
        prefix="TASK",
    ),
    Table(
        "incident",
        "Incident",
        (
            _ref("caller_id", "sys_user"),
            _text("category", choices=CATEGORIES, default="inquiry"),
            _text("subcategory"),
            _integer("severity", "3", LEVELS),
            _integer("incident_state", "1", INCIDENT_STATES),
            _integer("hold_reason", choices=HOLD_REASONS),
            _text("close_code", choices=CLOSE_CODES),
            _moment("resolved_at"),
            _ref("resolved_by", "sys_user"),
            _integer("reopen_count", "0"),
            _ref("parent_incident", "incident"),
            _text("business_impact", 4000),
        ),
        parent="task",
        display="number",
        prefix="INC",
        choices={"state": INCIDENT_STATES},
    ),
    Table(
        "change_request",
        "Change Request",
        (
            _text(
                "type", choices={"normal": "Normal", "standard": "Standard", "emergency": "Emergency"}, default="normal"
            ),
            _integer("risk", "4", {"2": "High", "3": "Moderate", "4": "Low"}),
            _moment("start_date"),
            _moment("end_date"),
            _ref("requested_by", "sys_user"),
        ),
        parent="task",
        display="number",
        prefix="CHG",
        choices={"state": CHANGE_STATES},
        defaults={"state": "-5"},
    ),
    Table(
        "incident_task",
        "Incident Task",
        (_ref("incident", "incident"),),
        parent="task",
        display="number",
        prefix="TASK",
    ),
    Table("u_onboarding", "Onboarding", (), parent="task", display="number", prefix="ONB"),
    Table(
        "sys_user",
        "User",
        (
            _text("user_name", unique=True),
            Column("email", "email", 100),
            _text("first_name", 50),
            _text("last_name", 50),
            _text("name", 151, read_only=True),
            _flag("active", "true"),
            _flag("locked_out"),
            Column("phone", "ph_number", 40),
            Column("mobile_phone", "ph_number", 40),
            _ref("manager", "sys_user"),
            _ref("department", "cmn_department"),
            _ref("location", "cmn_location"),
            _ref("company", "core_company"),
            _text("title", 60),
            _text("employee_number"),
            _text("time_zone"),
            _text("preferred_language", 3),
            _flag("vip"),
            _flag("web_service_access_only"),
            _flag("internal_integration_user"),
            Column("user_password", "password", 255),
            _text("source", 255),
            CLASS_NAME,
            DOMAIN,
        ),
    ),
    Table(
        "sys_user_group",
        "Group",
        (
            _text("name", 80),
            _text("description", 1000),
            _ref("manager", "sys_user"),
            Column("email", "email", 100),
            _flag("active", "true"),
            _text("type"),
            _ref("parent", "sys_user_group"),
            _text("source", 255),
        ),
    ),
    Table(
        "sys_user_grmember", "Group Member", (_ref("user", "sys_user"), _ref("group", "sys_user_group")), display="user"
    ),
    Table("sys_user_role", "Role", (_text("name", 100), _text("description", 1000), _flag("grantable", "true"))),
    Table(
        "sys_user_role_contains", "Contained Role", (_ref("role", "sys_user_role"), _ref("contains", "sys_user_role"))
    ),
    Table(
        "sys_user_has_role",
        "User Role",
        (
            _ref("user", "sys_user"),
            _ref("role", "sys_user_role"),
            _flag("inherited"),
            _text("state", default="active"),
            _ref("granted_by", "sys_user_group"),
            _ref("included_in_role", "sys_user_role"),
        ),
        display="role",
    ),
    Table(
        "sys_group_has_role",
        "Group Role",
        (_ref("group", "sys_user_group"), _ref("role", "sys_user_role"), _flag("inherits", "true")),
        display="role",
    ),
    Table(
        "sys_choice",
        "Choice",
        (
            _text("name", 80),
            _text("element", 80),
            _text("value"),
            _text("label", 60),
            _integer("sequence"),
            _text("language", 3, default="en"),
            _flag("inactive"),
            _text("dependent_value"),
        ),
        display="label",
    ),
    Table(
        "sys_dictionary",
        "Dictionary Entry",
        (
            _text("name", 80),
            _text("element", 80),
            _text("column_label", 80),
            _ref("internal_type", "sys_glide_object", by_name=True),
            _integer("max_length"),
            _ref("reference", "sys_db_object", by_name=True),
            _flag("mandatory"),
            _flag("read_only"),
            _flag("unique"),
            _flag("display"),
            _flag("active", "true"),
            _integer("choice", "0"),
            _text("default_value", 512),
        ),
        display="column_label",
    ),
    Table(
        "sys_db_object",
        "Table",
        (
            _text("name", 80),
            _text("label", 80),
            _ref("super_class", "sys_db_object"),
            _flag("is_extendable"),
            CLASS_NAME,
        ),
        display="label",
    ),
    Table("sys_glide_object", "Field class", (_text("name", 80), _text("label", 80)), display="label"),
    Table(
        "sys_journal_field",
        "Journal Entry",
        (_text("name", 80), _text("element", 80), _text("element_id", 32), Column("value", "string", 4000)),
        display="value",
    ),
    Table(
        "sys_attachment",
        "Attachment",
        (
            _text("file_name", 100),
            _text("content_type", 127),
            _integer("size_bytes"),
            _integer("size_compressed"),
            _flag("compressed", "true"),
            _text("table_name", 80),
            _text("table_sys_id", 32),
            _text("hash", 64),
            _text("state", default="available"),
        ),
        display="file_name",
    ),
    Table(
        "cmn_location",
        "Location",
        (
            _text("name", 100),
            _text("full_name", 255),
            _text("street", 255),
            _text("city"),
            _text("state"),
            _text("country"),
            _text("zip"),
            _text("latitude"),
            _text("longitude"),
            _text("time_zone"),
            _ref("parent", "cmn_location"),
        ),
    ),
    Table(
        "cmn_department",
        "Department",
        (_text("name", 100), _text("id"), _ref("dept_head", "sys_user"), _ref("company", "core_company")),
    ),
    Table(
        "core_company",
        "Company",
        (
            _text("name", 80),
            Column("website", "url", 1024),
            Column("phone", "ph_number", 40),
            _text("street", 255),
            _text("city", 50),
            _text("country"),
            _text("zip"),
            _flag("customer"),
            _flag("vendor"),
        ),
    ),
    Table(
        "cmdb_ci",
        "Configuration Item",
        (
            _text("name", 255),
            _text("serial_number", 255),
            _text("asset_tag"),
            _integer("install_status", "1"),
            CLASS_NAME,
        ),
    ),
    Table("cmdb_ci_service", "Business Service", (), parent="cmdb_ci"),
    Table(
        "alm_asset",
        "Asset",
        (
            _text("display_name", 255),
            _text("asset_tag"),
            _text("serial_number", 100),
            _text("model", 255),
            _integer("install_status", "1", {"1": "In use", "6": "In stock", "7": "Retired"}),
            _ref("company", "core_company"),
            _ref("assigned_to", "sys_user"),
            _ref("location", "cmn_location"),
            Column("purchase_date", "glide_date", 40),
            Column("warranty_expiration", "glide_date", 40),
            CLASS_NAME,
        ),
        display="display_name",
    ),
    Table("sys_properties", "System Property", (_text("name", 100), _text("value", 4000), _text("description", 255))),
)
TABLES: Mapping[str, Table] = {table.name: table for table in _ALL}


@functools.cache
def lineage(table: str) -> tuple[str, ...]:
    """Return a table's name and those of its parents, nearest first."""
    parent = TABLES[table].parent
    return (table, *(lineage(parent) if parent else ()))


@functools.cache
def family(table: str) -> tuple[str, ...]:
    """Return the tables whose rows a query on this table sees: itself and what extends it."""
    return tuple(name for name in TABLES if table in lineage(name))


@functools.cache
def columns_of(table: str) -> Mapping[str, Column]:
    """Return every column of a table by name, inherited and system columns included."""
    found: dict[str, Column] = {}
    for name in reversed(lineage(table)):
        for column in (*TABLES[name].columns, *(SYSTEM_COLUMNS if not TABLES[name].parent else ())):
            found[column.name] = dataclasses.replace(column, owner=name)
        for element, choices in TABLES[name].choices.items():
            found[element] = dataclasses.replace(found[element], choices=choices)
        for element, default in TABLES[name].defaults.items():
            found[element] = dataclasses.replace(found[element], default=default)
    return MappingProxyType(dict(sorted(found.items())))


@functools.cache
def blank_row(table: str) -> dict[str, str]:
    """Return a row with every column at its default; copy it before use."""
    return {name: column.default for name, column in columns_of(table).items()}


@functools.cache
def unique_columns(table: str) -> tuple[str, ...]:
    """Return the names of the columns that hold each value once."""
    return tuple(name for name, column in columns_of(table).items() if column.unique)
