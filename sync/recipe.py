"""The recipe as the engine sees it: frozen values with every short form spelt out; the file's shape is declared here.

The keys of a recipe file are the fields of these models, so the loader's messages, the editor's schema and the engine
agree. What a recipe means together with others is checked in recipe_rules.py.
"""

from collections.abc import Iterator, Mapping
from datetime import time
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    model_validator,
)
from pydantic.json_schema import SkipJsonSchema

from shared.clients.system import Condition, Paths, Scalar, Value
from sync import recipe_forms as forms
from sync.converters import ConverterCall
from sync.placeholders import MARKER_PATH, Template
from sync.windows import Window

BLOCK_WRITE = (
    "What may be done: `upsert`: create what is missing, keep in step what exists. `create`: create what is missing, never "
    "change it. `update`: keep in step what exists, never create. `never`: only look, for `find` alone. `mirror`: like "
    "`upsert`, and take away what is linked and the source no longer has, for `children` alone."
)
MATCH = (
    "Rules by which a record that is not linked yet is found, strongest first; the first rule that finds one counts. A rule "
    "is a field of this block, a list of fields that must all be equal, or the long form. Needed where records are created, "
    "and in `find`; `link` is for `find` alone: the record that the source's record is linked to."
)
FIELDS = "The target's fields. `field: path` is short for `field: {from: path}`."
CHILDREN = "Records that belong to this one, worked after it: blocks of their own."
RECORD_ITSELF = "."


class WriteMode(StrEnum):
    """How far a block may go with its record."""

    UPSERT = "upsert"
    CREATE = "create"
    UPDATE = "update"
    MIRROR = "mirror"
    NEVER = "never"

    @property
    def may_create(self) -> bool:
        """Whether a record that is not found is made."""
        return self in {WriteMode.UPSERT, WriteMode.CREATE, WriteMode.MIRROR}

    @property
    def may_change(self) -> bool:
        """Whether a record that is found is changed."""
        return self in {WriteMode.UPSERT, WriteMode.UPDATE, WriteMode.MIRROR}


class FieldWrite(StrEnum):
    """When a field of a record that exists is written."""

    ALWAYS = "always"
    ON_CREATE = "on_create"
    IF_EMPTY = "if_empty"
    NEWEST = "newest"
    UNLESS_CHANGED = "unless_changed"


class GoneAction(StrEnum):
    """What happens to the target when the source record is over."""

    IGNORE = "ignore"
    FOLLOW = "follow"
    WRITE = "write"


class Strict(BaseModel):
    """Base of the models: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)


FieldPath = Annotated[str, AfterValidator(forms.check_path)]
Required = Annotated[
    bool | str | None, PlainValidator(forms.parse_required, json_schema_input_type=Literal[True] | str)
]
ConditionField = Annotated[
    Condition,
    PlainValidator(forms.parse_condition, json_schema_input_type=dict[str, forms.ConditionLine]),
]
WindowField = Annotated[Window, PlainValidator(forms.parse_window_key, json_schema_input_type=str)]
Choices = tuple[tuple[Scalar, tuple[Value, ...]], ...]
PathList = Annotated[tuple[FieldPath, ...], BeforeValidator(forms.as_list, json_schema_input_type=str | list[str])]
Names = Annotated[tuple[str, ...], BeforeValidator(forms.as_list, json_schema_input_type=str | list[str])]


class RecordRef(Strict):
    """A kind of record in a connection."""

    connection: str
    record: str

    def __str__(self) -> str:
        return f"{self.connection}.{self.record}"


class MatchRule(Strict):
    """One way to find the target's record, in its long form."""

    fields: PathList = Field(
        (), description="Fields of this block. The target's record must hold the mapped value in all of them."
    )
    when: ConditionField = Field({}, description="A condition on the target's record; one that fails it is not taken.")
    same_or_empty: PathList = Field(
        (), description="Fields of this block. A record that holds another value in one of them is not taken."
    )

    link: SkipJsonSchema[bool] = Field(False, alias=" link")  # the record that the source's record is linked to


class FieldRule(Strict):
    """How one field of the target is filled."""

    name: SkipJsonSchema[str] = Field("", alias=" name")
    from_: PathList = Field(
        (), alias="from", description="A path of the source, or several, of which the first that is not empty counts."
    )
    value: Annotated[
        Template | Value,
        PlainValidator(
            forms.parse_value, json_schema_input_type=str | float | bool | list[Any] | dict[str, Any] | None
        ),
    ] = Field(
        None, description="A constant, or a text with {paths} of the source; a brace that is meant is written twice."
    )
    find: "Find | None" = Field(None, description="Turns the value into the id of another record.")
    choices: Annotated[
        Choices, PlainValidator(forms.parse_choices, json_schema_input_type=dict[str, forms.ChoiceRight])
    ] = Field(
        (),
        description=(
            "Table of values: the source's on the left, the target's on the right. If the source holds several, the first row "
            "that fits counts. A list on the right: its first value is written, each of them is left alone if the target holds it."
        ),
    )
    convert: Annotated[
        tuple[ConverterCall, ...], PlainValidator(forms.parse_convert, json_schema_input_type=forms.ConvertText)
    ] = Field((), description="Converters, worked in order, before `choices`.")
    default: Annotated[
        Value, PlainValidator(forms.parse_constant, json_schema_input_type=str | float | bool | list[Any] | None)
    ] = Field(
        None,
        description=(
            "Stands in when the source is empty, cannot be used, is not in `choices` or is not found; each but the first with a "
            "warning. With `find` it is a value to look up by, never an id."
        ),
    )
    required: Required = Field(
        None,
        description=(
            "An empty source fails the record, and so does a value that cannot be used if there is no `default`. A word is "
            "the reason that people read; `true` gives `required_empty`."
        ),
    )
    when: ConditionField = Field({}, description="The field is written only where this holds, else left alone.")
    write: FieldWrite = Field(
        FieldWrite.ALWAYS,
        description=(
            "When a record that exists gets the field: `always`: whenever the source's value changes. `on_create`: never, "
            "only a new record gets it. `if_empty`: only while the target's field is empty; a recipe's first run writes it "
            "like `always`. `newest`: unless the target's field was changed since, and the target's record later than the "
            "source's. `unless_changed`: unless the target's field was changed since we last wrote it."
        ),
    )
    doc: str = Field("", description="A sentence for readers of docs/field-mappings.md.")

    @model_validator(mode="before")
    @classmethod
    def _spell_out(cls, raw: Any) -> Any:
        return forms.spell_out_field(raw)

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        has_value = "value" in self.model_fields_set
        if bool(self.from_) == has_value:
            raise ValueError(f"a field takes `from` or `value`, {'not both' if has_value else 'one of the two'}")
        if self.find and not self.from_:
            raise ValueError("`find` needs `from`, the reference or `.` for the record itself")
        if self.find and (self.choices or self.convert):
            raise ValueError("a field with `find` takes no `choices` and no `convert`: put them on the fields inside")
        return self

    @property
    def template(self) -> Template | None:
        """The text with `{paths}`, where the field has one."""
        return self.value if isinstance(self.value, Template) else None

    @property
    def constant(self) -> bool:
        """Whether the field needs nothing of the source."""
        return not self.from_ and not self.template

    @property
    def reason(self) -> str | None:
        """The code with which an empty source fails the record; None when it may be empty."""
        return forms.reason_of(self.required, "required_empty")

    def read_paths(self, prefix: str = "") -> Iterator[str]:
        """Yield every path of the source record that the field needs, full from the record on."""
        converters = (path for call in self.convert for path in call.paths)
        template = self.template.paths if self.template else ()
        for path in (*self.from_, *template, *converters, *self.when):
            yield join_path(prefix, path)
        if self.find:
            for path in self.from_:
                yield from self.find.read_paths(join_path(prefix, path))


class Block(Strict):
    """How one kind of record is kept in step; the recipe's own, or one under `children`."""

    record: str = Field(description="The target's kind of record, by the vendor's name.")
    from_: FieldPath | None = Field(
        None,
        alias="from",
        description="The source's child type, one record for each entry. Without it: one record, made from the source's record itself.",
    )
    when: ConditionField = Field(
        {}, description="Only where this holds on the record that the block is made from; what fails it is left out."
    )
    match: Annotated[
        tuple[MatchRule, ...], BeforeValidator(forms.spell_out_match, json_schema_input_type=forms.MatchText)
    ] = Field((), description=MATCH)
    write: WriteMode = Field(WriteMode.UPSERT, description=BLOCK_WRITE)
    fields: Annotated[
        dict[str, FieldRule],
        BeforeValidator(forms.name_fields, json_schema_input_type=dict[str, str | FieldRule]),
    ] = Field({}, description=FIELDS)
    children: tuple["Block", ...] = Field((), description=CHILDREN)

    def read_paths(self, prefix: str = "") -> Iterator[str]:
        """Yield every path of the source record that the block needs, full from the record on."""
        for path in self.when:
            yield join_path(prefix, path)
        for rule in self.fields.values():
            yield from rule.read_paths(prefix)
        for child in self.children:
            child_prefix = join_path(prefix, child.from_) if child.from_ else prefix
            if child.from_:
                yield join_path(child_prefix, MARKER_PATH)
            yield from child.read_paths(child_prefix)

    def target_paths(self) -> Paths:
        """Return the paths of the target's record that matching and deciding read: its fields, and match conditions."""
        conditions = (path for rule in self.match for path in rule.when)
        return frozenset((*self.fields, *conditions))

    @property
    def is_marked(self) -> bool:
        """Whether its records are only added and known by what they were made from: comments, notes."""
        return self.write is WriteMode.CREATE and self.from_ is not None

    @property
    def first_match(self) -> tuple[str, ...]:
        """The fields of the first rule that names any: what claims and lost answers are looked up by."""
        return next((rule.fields for rule in self.match if not rule.link), ())


class Find(Block):
    """A block under a field: another record whose id the field needs, worked before it."""

    write: WriteMode = Field(WriteMode.NEVER, description=f"{BLOCK_WRITE} `find` only looks unless this says more.")
    required: Required = Field(
        None,
        description=(
            "The record fails where the other one is not found, with this word as its reason; `true` gives the reason that is "
            "found. Without it the field stays empty, with a warning."
        ),
    )
    from_: SkipJsonSchema[None] = Field(None, alias=" from")

    @property
    def reason(self) -> str | None:
        """The code with which a record that is not there fails the one that needs it; None when it may be missing."""
        return forms.reason_of(self.required, "reference_not_found")


class Daily(Strict):
    """A timer that fires once a day. A text alone is its window."""

    at: Annotated[time | None, PlainValidator(forms.parse_time_key, json_schema_input_type=str)] = Field(
        None,
        description='Time of day, in quotes: "06:30". Without it: the app\'s own, the setting DAILY_SYNC_SCHEDULE.',
    )
    zone: Annotated[str | None, AfterValidator(forms.check_zone)] = Field(
        None,
        description="Time zone of `at`, like Europe/Berlin. Without it: the setting TIME_ZONE. Only with `at`.",
    )
    days: Annotated[frozenset[int], PlainValidator(forms.parse_days_key, json_schema_input_type=str)] = Field(
        frozenset(range(7)), description="Days of the week, like mon-fri or sat,sun. Only with `at`."
    )
    window: WindowField = Field(Window(forms.SINCE_LAST_RUN), description="What each run reads.")


class Poll(Strict):
    """A timer that fires again and again. A text alone is its window."""

    every_s: Annotated[int | None, PlainValidator(forms.parse_every_key, json_schema_input_type=str)] = Field(
        None, alias="every", description="Interval of a minute or more: 5m, 90s, 1h, 1d. Without it: 5m."
    )
    window: WindowField = Field(Window(forms.SINCE_LAST_RUN), description="What each run reads.")


class Start(Strict):
    """What begins it: at least one of `http`, `daily`, `poll`, `webhook` and `after`; they can stand together."""

    http: WindowField | None = Field(
        None,
        description=(
            "The window of a start by HTTP that names none. Every recipe can be started by HTTP; without this key the window "
            "is since_last_run."
        ),
    )
    daily: Annotated[Daily | None, BeforeValidator(forms.window_or_map, json_schema_input_type=str | Daily)] = Field(
        None,
        description="Starts a run once a day: its window, or a table. Needs `notify: {summary: …}` unless `webhook` stands beside it.",
    )
    poll: Annotated[Poll | None, BeforeValidator(forms.window_or_map, json_schema_input_type=str | Poll)] = Field(
        None, description="Starts a run again and again: its window, or a table."
    )
    webhook: Annotated[
        tuple[str, ...] | None,  # () is every event
        PlainValidator(forms.parse_webhook, json_schema_input_type=Literal[True] | str | list[str]),
    ] = Field(
        None,
        description="The source calls for each record. Names of the events that count, such as Create, Update and Delete; `true`: every event.",
    )
    after: str | None = Field(
        None,
        description=(
            "Name of another recipe. When a run of it has ended this one starts, with the window since_last_run. Previews, "
            "verifications, backfills (`from`/`to`, `all`), runs over `ids`, webhooks and runs that failed or were cancelled start nothing."
        ),
    )
    start_from: Annotated[Window | None, PlainValidator(forms.parse_start_from, json_schema_input_type=str)] = Field(
        None,
        description="What the first run over since_last_run reads: a window, a date or a time. Without it: what changed since the recipe was first active.",
    )

    @model_validator(mode="after")
    def _check_any(self) -> Self:
        if not self.model_fields_set - {"start_from"}:
            raise ValueError("`start` names nothing that starts the recipe: http, daily, poll, webhook or after")
        return self

    @property
    def timed(self) -> bool:
        """Whether the daily timer's runs owe a mail; beside a webhook it is a sweep and owes none."""
        return self.daily is not None and self.webhook is None


class Gone(Strict):
    """What to do when the source record was deleted or no longer meets `when`."""

    action: GoneAction = GoneAction.IGNORE
    fields: dict[str, FieldRule] = {}


class Notify(Strict):
    """Who is told of what: `email`, `teams`, `slack`, or an email address, alone or in a list.

    The loader checks these keys, and nothing reads them yet: whoever starts by HTTP gets the summary, all other mails go
    to the settings NOTIFY and NOTIFY__<RECIPE>. `teams` and `slack` send nothing.
    """

    summary: Annotated[Names, AfterValidator(forms.check_channels)] = Field(
        default=(),
        description="The summary of the daily timer's runs. Needed beside `daily`, unless `webhook` stands there too.",
    )
    created: Annotated[Names, AfterValidator(forms.check_channels)] = Field(
        default=(), description="Records that were created."
    )
    failed: Annotated[Names, AfterValidator(forms.check_channels)] = Field(
        default=(), description="Records that failed."
    )


class RecipeText(Strict):
    """The keys at the top of a recipe file."""

    title: str = Field(
        min_length=1, max_length=100, description="The name that people see; of a process event its exact name."
    )
    source: Annotated[RecordRef, BeforeValidator(forms.parse_record, json_schema_input_type=str)] = Field(
        description="Where records come from: connection.record, like dynamics365.account."
    )
    target: Annotated[RecordRef, BeforeValidator(forms.parse_record, json_schema_input_type=str)] = Field(
        description="Where records go: connection.record, like servicenow.incident."
    )
    start: Start = Field(description="What begins a run, and over which window.")
    gone: Annotated[
        Gone, BeforeValidator(forms.spell_out_gone, json_schema_input_type=Literal["ignore", "follow"] | dict[str, Any])
    ] = Field(
        Gone(),
        description=(
            "What becomes of a linked record whose source no longer meets `when`, or was deleted (a webhook's Delete event "
            "says so; a run does not see it). `ignore`: it is left as it is. `follow`: it is kept in step as long as the source's "
            "record exists. A table of fields: these are written, once; a text alone is the value."
        ),
    )
    notify: Notify = Field(Notify(), description="Who is told of what.")
    when: ConditionField = Field(
        {},
        description=(
            "Only where this holds on the source's record is anything created or kept in step. A record that is linked already and no "
            "longer meets it is treated as `gone` says."
        ),
    )
    match: Annotated[
        tuple[MatchRule, ...], BeforeValidator(forms.spell_out_match, json_schema_input_type=forms.MatchText)
    ] = Field((), description=MATCH)
    write: WriteMode = Field(WriteMode.UPSERT, description=BLOCK_WRITE)
    fields: Annotated[
        dict[str, FieldRule],
        BeforeValidator(forms.name_fields, json_schema_input_type=dict[str, str | FieldRule]),
    ] = Field(description=FIELDS)
    children: tuple[Block, ...] = Field((), description=CHILDREN)


Location = tuple[str | int, ...]
"""Keys and positions that lead to a part of a recipe file."""

Place = tuple[int, int]
"""Line and column in a file, both from 1."""


class Recipe(Strict):
    """One declared sync."""

    name: str  # the file's stem
    title: str
    source: RecordRef
    target: RecordRef
    start: Start
    gone: Gone
    notify: Notify
    block: Block
    path: str  # the file, as messages name it
    hash: str  # changes when the meaning does, not with comments
    places: Mapping[Location, Place] = Field(repr=False)  # where each key stands in the file

    @property
    def gone_block(self) -> Block:
        """The block that is worked when the source record is over and `gone` names fields to write."""
        return Block.model_validate({"record": self.target.record, "write": "update", "fields": self.gone.fields})

    def read_paths(self) -> Paths:
        """Return every path of the source record that the recipe reads, those of finds and children included."""
        gone = (path for rule in self.gone.fields.values() for path in rule.read_paths())
        return frozenset((*self.block.read_paths(), *gone)) - {RECORD_ITSELF}

    def target_paths(self) -> Paths:
        """Return the paths of the target's record that the recipe reads, those of `gone` included."""
        return self.block.target_paths() | frozenset(self.gone.fields)

    def place_of(self, location: Location) -> Place:
        """Return where a part of the file stands, or the nearest part around it."""
        return find_place(self.places, location)


def find_place(places: Mapping[Location, Place], location: Location) -> Place:
    """Return where a part of a file stands, or the nearest part around it."""
    while location and location not in places:
        location = location[:-1]
    return places.get(location, (1, 1))


def join_path(prefix: str, path: str) -> str:
    """Return a path that is relative to a reference, full from the record on; `.` is the reference itself."""
    if prefix in {"", RECORD_ITSELF}:
        return path
    return prefix if path == RECORD_ITSELF else f"{prefix}.{path}"


for _model in (FieldRule, Block, Find, RecipeText, Recipe):  # FieldRule and Find name each other
    _model.model_rebuild()
