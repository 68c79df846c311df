"""A toy app for the stand-in host: each message says what to do, and what was done goes to a journal that all processes share."""

import json
import logging
import os
import signal
import threading
import time
from pathlib import Path

import azure.functions as func

FOLDER = Path(os.environ["TOY_FOLDER"])

app = func.FunctionApp(http_auth_level=func.AuthLevel.FUNCTION)
jobs = func.Blueprint()


def note(**facts: object) -> None:
    """Append a line to the journal; one write, so lines of several processes do not mix."""
    line = json.dumps(facts | {"pid": os.getpid(), "at_s": time.monotonic()}) + "\n"
    fd = os.open(FOLDER / "journal", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        os.write(fd, line.encode())
    finally:
        os.close(fd)


def hold(token: str) -> None:
    """Wait until the test lets this token go."""
    while not (FOLDER / f"release-{token}").exists():
        time.sleep(0.01)


@app.route("echo/{kind:alpha}/{id:int?}", methods=["GET", "POST"])
def echo(req: func.HttpRequest, context: func.Context) -> func.HttpResponse:
    """Answer with everything that arrived."""
    logging.info("echo for %s", req.route_params["kind"])
    body = {
        "method": req.method,
        "url": req.url,
        "params": dict(req.params),
        "route_params": dict(req.route_params),
        "content_type": req.headers.get("Content-Type"),
        "body": req.get_body().decode(),
        "pid": os.getpid(),
        "function": context.function_name,
    }
    headers = {"X-Toy": "yes", "Set-Cookie": "a=1; Path=/"}
    return func.HttpResponse(json.dumps(body), status_code=202, mimetype="application/json", headers=headers)


@app.route("echo/special")
def special(req: func.HttpRequest) -> str:
    """Answer a text; more specific than `echo`."""
    return "special"


@app.route("public", auth_level=func.AuthLevel.ANONYMOUS)
async def public(req: func.HttpRequest) -> func.HttpResponse:
    """Answer to everybody."""
    return func.HttpResponse(b"\x00\x01", mimetype="application/octet-stream")


@app.route("broken")
def broken(req: func.HttpRequest) -> func.HttpResponse:
    """Raise."""
    raise RuntimeError("this one is broken")


@app.route("slow/{token}")
def slow(req: func.HttpRequest) -> func.HttpResponse:
    """Answer when the test says so."""
    note(function="slow", token=req.route_params["token"])
    hold(req.route_params["token"])
    return func.HttpResponse("late")


@jobs.queue_trigger(arg_name="msg", queue_name="%TOY_QUEUE%", connection="AzureWebJobsStorage")
def work(msg: func.QueueMessage) -> None:
    """Do what the message says."""
    order = json.loads(msg.get_body())
    facts = {"function": "work", "token": order["token"], "id": msg.id, "count": msg.dequeue_count}
    note(event="start", hours=(msg.expiration_time - msg.insertion_time).total_seconds() / 3600, **facts)
    match order["do"]:
        case "fail":
            raise RuntimeError("as ordered")
        case "hold":
            hold(order["token"])
        case "hold_first" if msg.dequeue_count == 1:
            hold(order["token"])
        case "die_first" if msg.dequeue_count == 1:
            os.kill(os.getpid(), signal.SIGKILL)
    note(event="end", **facts)
    return "something" if order["do"] == "return" else None


@jobs.queue_trigger(arg_name="body", queue_name="%TOY_QUEUE%-poison", connection="AzureWebJobsStorage")
def bury(body: str, context: func.Context) -> None:
    """Write poison down; `stubborn` poison cannot be buried."""
    note(function="bury", body=body, thread=threading.current_thread().name)
    if "stubborn" in body:
        raise RuntimeError("not buried")


@jobs.timer_trigger(arg_name="timer", schedule="%TOY_SCHEDULE%", run_on_startup=True)
def tick(timer: func.TimerRequest) -> None:
    """Note a due date."""
    note(function="tick", past_due=timer.past_due)


app.register_functions(jobs)
