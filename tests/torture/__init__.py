"""Kills servers, databases and training runs, and looks whether anything that was acknowledged is lost or doubled.

    python -m tests.torture [--rounds 200] [--database URL]

`make torture` runs it on SQLite and on PostgreSQL; the tests take a short share of it.
"""
