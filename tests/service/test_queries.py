"""The cost of a call does not grow with the jobs that have ended: each query finds its rows by an index."""

import re

import pytest
from sqlalchemy import Engine, create_engine, event
from stored import accept, requests, run

from cotrunk.service.store import Store

LARGE = "images|jobs|events|files"
# SQLite's words for reading a whole table, or a whole index
SCAN = re.compile(rf"SCAN cotrunk_({LARGE})\b(?! USING INTEGER PRIMARY KEY)")


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_no_call_reads_a_whole_table(store: Store, database: str) -> None:
    seen: dict[str, object] = {}

    def note(connection, cursor, statement, parameters, context, executemany) -> None:
        seen[statement] = parameters[0] if executemany else parameters

    event.listen(Engine, "before_cursor_execute", note)
    try:
        job, other = accept(store, "a", "b", "c", max_waiting_rows=10**6, idempotency_key="k"), accept(store, "d")
        store.accept("ann", "plan", requests("p"), body={}, max_plans=5)
        accept(store, *"xyz", owner="eve", max_waiting_rows=10**6, max_owner_rows=100), store.feed(10**6, 100)
        store.add_file("ann", "x", "batch", b"", max_bytes=10)
        store.queue()
        ids = run(store)
        store.heartbeat("w1", 10)
        store.finish("w1", ids[0], {})
        store.split("w1", store.image("ann", ids[1]).group)
        store.cancel("ann", job)
        store.release("w1")
        store.reclaim("w2", 10)
        for plan in store.waiting_plans():
            store.start_plan(plan.job.id)
        file = store.add_file("ann", "x", "batch", b"")
        batch = store.add_batch("ann", file.id, "/", max_open=5)
        store.start_batch(batch.id, requests("e"))
        for owner in ("ann", "bob"):
            store.jobs(owner, after=other), store.files(owner), store.batches(owner), store.images(owner, job)
        store.events("ann", job, 3), store.all_events(5), store.last_event(), store.image("ann", ids[0])
        store.validating_batches(), store.finalizing_batches(), store.expire_batches(), store.ended(0.0)
        store.cancel_batch("ann", batch.id)
        store.event(job, "step", {})
    finally:
        event.remove(Engine, "before_cursor_execute", note)
    assert len(seen) > 40
    engine = create_engine(database)
    with engine.connect() as connection:
        for statement, parameters in seen.items():
            if statement.startswith(("SELECT", "UPDATE", "DELETE")):
                plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters).all()
                assert not [row for row in plan if SCAN.search(str(row))], (statement, plan)
    engine.dispose()
