"""Every error Concord raises on purpose, named after what happens next.

SyncError
├─ ConfigError            stop; names the setting or the recipe line
├─ MappingError           this record fails, the run goes on
├─ RemoteError            connection, method, path, status, request_id, body_excerpt
│  ├─ TransientError         timeout on a read, 5xx, lock: sent again with growing delay
│  ├─ RateLimitedError       retry_after_s: put back with that delay, not counted as a failure
│  ├─ AmbiguousWriteError    a create whose answer was lost, or that the vendor says exists: look it up first
│  ├─ RejectedError          other 4xx: this record fails
│  └─ AccessError            401 after renewal, 403: the connection is at fault, say so once and first
└─ StateError             table or queue refused: raise, the queue delivers the message again
"""

EXCERPT_CHARS = 300
EXISTS_ALREADY = "exists_already"  # code of an AmbiguousWriteError: the vendor says that such a record is there


class SyncError(Exception):
    """Base of every deliberate error; `code` is the reason that results carry, the text is a sentence for people."""

    code = "error"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        if code:
            self.code = code


class ConfigError(SyncError):
    """A setting or a recipe is wrong; nothing can start until a person mends it."""

    code = "config_error"


class MappingError(SyncError):
    """This record cannot be mapped; `code` is the recipe's own reason where it names one."""

    code = "mapping_error"


class RemoteError(SyncError):
    """A vendor's answer, or its absence, that stops a call.

    The body excerpt never travels into results or mails; logs carry it cut to EXCERPT_CHARS.
    """

    code = "remote_error"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        connection: str = "",
        method: str = "",
        path: str = "",
        status: int = 0,
        request_id: str = "",
        body_excerpt: str = "",
    ) -> None:
        super().__init__(message, code=code)
        self.connection = connection
        self.method = method
        self.path = path
        self.status = status
        self.request_id = request_id
        self.body_excerpt = body_excerpt[:EXCERPT_CHARS]


class TransientError(RemoteError):
    """Worth another attempt later: a read that timed out, a 5xx, a lock."""

    code = "vendor_unavailable"


class RateLimitedError(RemoteError):
    """The vendor, or our own permits, ask us to wait `retry_after_s` seconds; not a failed attempt."""

    code = "rate_limited"

    def __init__(self, message: str, *, retry_after_s: float, **facts: object) -> None:
        super().__init__(message, **facts)  # type: ignore[arg-type]  # the facts of RemoteError, passed through
        self.retry_after_s = retry_after_s


class AmbiguousWriteError(RemoteError):
    """A create (or an append) that may have taken effect: look it up by the first match rule before anything else."""

    code = "ambiguous_write"


class RejectedError(RemoteError):
    """The vendor refuses this record; another attempt with the same values would be refused too."""

    code = "rejected"


class AccessError(RemoteError):
    """The connection itself is at fault: credentials, role or allow list."""

    code = "access_denied"


class StateError(SyncError):
    """Our own storage refused; the attempt ends here and the queue delivers the message again."""

    code = "storage_error"
