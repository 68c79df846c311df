"""`$batch` of the Dynamics 365 simulator: multipart bodies, change sets that hold together, content id references."""

import json
import re
import uuid
from dataclasses import replace
from http import HTTPStatus
from typing import Any

from sandbox.dynamics365_api import WebApi
from sandbox.dynamics365_calls import Answer, Call, read_preferences
from sandbox.dynamics365_store import ApiError

MAX_REQUESTS = 1000
BAD_BATCH = "0x80048d19"
Part = tuple[dict[str, str], str]  # headers with lower-case names, body


class _ChangeSetError(Exception):
    """One operation of a change set was refused."""

    def __init__(self, answer: Answer) -> None:
        super().__init__()
        self.answer = answer


def answer_batch(api: WebApi, call: Call) -> Answer:
    """Answer a whole batch. Raises ApiError when the batch itself cannot be read."""
    parts = _split(call.body, call.headers.get("content-type", ""))
    operations = [_read_operation(call, part) for part in parts]
    if sum(len(op) if isinstance(op, list) else 1 for op in operations) > MAX_REQUESTS:
        raise ApiError(400, BAD_BATCH, f"The batch holds more than {MAX_REQUESTS} requests.")
    for operation in operations:
        _check_operation(api, operation)
    go_on = read_preferences(call.headers.get("prefer", "")).continue_on_error
    boundary, status, texts = f"batchresponse_{uuid.uuid4()}", 200, []
    for operation in operations:
        if isinstance(operation, list):
            failed, text = _answer_change_set(api, operation)
        else:
            answer = api.answer(operation[1])
            failed, text = (answer.status if answer.status >= 400 else 0), _write_answer(answer, operation[0])
        texts.append(text)
        if failed and not go_on:
            status = failed
            break
    body = "".join(f"--{boundary}\r\n{text}\r\n" for text in texts) + f"--{boundary}--\r\n"
    return Answer(status, body, {"OData-Version": "4.0", "Content-Type": f"multipart/mixed; boundary={boundary}"})


Operation = tuple[str, Call]  # content id, call


def _check_operation(api: WebApi, operation: Operation | list[Operation]) -> None:
    for _, part in operation if isinstance(operation, list) else [operation]:
        if part.path.strip("/") == "$batch":
            raise ApiError(400, BAD_BATCH, "A batch cannot hold another batch.")
        if isinstance(operation, list) and part.method == "GET":
            raise ApiError(400, BAD_BATCH, "A change set cannot hold a GET request.")
        if len(part.target) > api.settings.max_batch_url_chars:
            raise ApiError(414, "", "The request URI of a batch part is too long.")


def _answer_change_set(api: WebApi, operations: list[Operation]) -> tuple[int, str]:
    """Work a change set as one; the error's status (or 0) and the text of its part."""
    references: dict[str, str] = {}
    texts = []
    try:
        with api.rows.transaction():
            for content_id, call in operations:
                answer = _answer_or_raise(api, _replace_references(call, references))
                if content_id and "OData-EntityId" in answer.headers:
                    references[f"${content_id}"] = answer.headers["OData-EntityId"]
                texts.append(_write_answer(answer, content_id))
    except _ChangeSetError as exc:
        return exc.answer.status, _write_answer(exc.answer, "")
    boundary = f"changesetresponse_{uuid.uuid4()}"
    inner = "".join(f"--{boundary}\r\n{text}\r\n" for text in texts) + f"--{boundary}--\r\n"
    return 0, f"Content-Type: multipart/mixed; boundary={boundary}\r\n\r\n{inner}"


def _answer_or_raise(api: WebApi, call: Call) -> Answer:
    answer = api.answer(call)
    if answer.status >= 400:
        raise _ChangeSetError(answer)
    return answer


def _replace_references(call: Call, references: dict[str, str]) -> Call:
    target = call.target
    head = re.match(r"/?(\$\w+)", target)
    if head and head[1] in references:
        target = references[head[1]].removeprefix(call.root) + target[head.end() :]
    body = call.body
    if body and references:
        try:
            body = json.dumps(_bind_references(json.loads(body), references)).encode()
        except ValueError:
            body = call.body  # the refusal comes from where bodies are read
    return replace(call, target=target, body=body)


def _bind_references(value: Any, references: dict[str, str]) -> Any:
    if not isinstance(value, dict):
        return value
    return {
        name: references.get(item.lstrip("/"), item) if name.endswith("@odata.bind") and isinstance(item, str) else item
        for name, item in value.items()
    }


def _split(body: bytes, content_type: str) -> list[Part]:
    match = re.search(r'multipart/mixed\s*;.*?boundary="?([^";,\s]+)"?', content_type, re.IGNORECASE)
    if match is None:
        raise ApiError(400, BAD_BATCH, "A batch needs the header Content-Type: multipart/mixed with a boundary.")
    try:
        text = "\r\n" + body.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise ApiError(400, BAD_BATCH, f"The batch is not valid UTF-8: {exc}") from None
    _, *pieces = text.split(f"\r\n--{match[1]}")
    if len(pieces) < 2 or not pieces[-1].startswith("--"):
        raise ApiError(
            400, BAD_BATCH, "The batch cannot be read: lines must end with CRLF and the last boundary with two hyphens."
        )
    return [_split_head(piece.removeprefix("\r\n")) for piece in pieces[:-1]]


def _split_head(text: str) -> Part:
    head, _, body = text.partition("\r\n\r\n")
    headers = {}
    for line in head.split("\r\n"):
        name, colon, value = line.partition(":")
        if not colon:
            raise ApiError(400, BAD_BATCH, f"'{line}' is no header.")
        headers[name.strip().lower()] = value.strip()
    return headers, body


def _read_operation(outer: Call, part: Part) -> Operation | list[Operation]:
    headers, body = part
    kind = headers.get("content-type", "")
    if kind.startswith("multipart/mixed"):
        inner = [_read_operation(outer, piece) for piece in _split(body.encode(), kind)]
        if any(isinstance(operation, list) for operation in inner):
            raise ApiError(400, BAD_BATCH, "A change set cannot hold another one.")
        if not all(operation[0] for operation in inner):
            raise ApiError(400, BAD_BATCH, "Each request of a change set needs a Content-ID.")
        return [operation for operation in inner if not isinstance(operation, list)]
    if not kind.startswith("application/http"):
        raise ApiError(400, BAD_BATCH, "A part of a batch needs the header Content-Type: application/http.")
    line, _, rest = body.partition("\r\n")
    match = re.fullmatch(r"(GET|POST|PATCH|PUT|DELETE) (.+) HTTP/1\.1", line)
    if match is None:
        raise ApiError(400, BAD_BATCH, f"'{line}' is no request line.")
    inner_headers, inner_body = (
        ({}, rest.removeprefix("\r\n")) if rest.startswith("\r\n") or not rest else _split_head(rest)
    )
    call = Call(
        match[1], _read_target(outer, match[2]), inner_headers, inner_body.strip().encode(), outer.root, outer.user
    )
    return headers.get("content-id", ""), call


def _read_target(outer: Call, url: str) -> str:
    target = url.removeprefix(outer.root)
    target = re.sub(r"^/api/data/v9\.\d/", "", target)
    if re.match(r"https?://", target):
        raise ApiError(400, BAD_BATCH, f"The request '{url}' does not belong to this environment.")
    return target


def _write_answer(answer: Answer, content_id: str) -> str:
    lines = ["Content-Type: application/http", "Content-Transfer-Encoding: binary"]
    if content_id:
        lines.append(f"Content-ID: {content_id}")
    lines += ["", f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}"]
    lines += [f"{name}: {value}" for name, value in answer.headers.items()]
    return "\r\n".join([*lines, "", answer.text])
