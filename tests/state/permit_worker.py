"""A process of its own that calls a counting vendor under permits: `python -m tests.state.permit_worker …`."""

import os
import socket
import sys
import threading

from shared.attempt import Lane, attempt
from shared.state.permits import SharedPermits
from shared.state.shares import Limits
from shared.state.storage import connect_tables
from shared.state.tables import Tables

CALL_S, SLACK_S = 1.0, 1.0


def call_vendor(port: int, lane: str) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=30) as vendor:
        vendor.sendall(lane[:1].encode())
        vendor.recv(1)


def main(prefix: str, port: int, concurrency: int, threads: int, calls: int) -> None:
    tables = Tables(connect_tables(os.environ["STORAGE"]), prefix)
    permits = SharedPermits(tables, "vendor", Limits(concurrency), call_s=CALL_S, slack_s=SLACK_S, wait_s=60)

    def work() -> None:
        with attempt(lane=Lane.RUN):
            for _ in range(calls):
                with permits.hold():
                    call_vendor(port, "run")

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    permits.close()
    print(tables.operations.total())


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
