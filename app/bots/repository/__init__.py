"""SQL of bots, by subject. No other package imports it.

Locks, in this order everywhere: the calendar's row, rows of its events, rows of bots by id. A transaction that changes
a bot holds its row lock from reading it until the commit; claiming skips locked rows.
"""
