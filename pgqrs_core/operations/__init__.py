"""Every operation on a queue, as a generator of effects.

An operation decides; a driver does. Nothing here imports psycopg, reads a clock or sleeps, so each can be tested by
answering it by hand, and each runs unchanged on a blocking and on an asyncio connection.
"""
