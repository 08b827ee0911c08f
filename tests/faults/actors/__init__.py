"""The processes of a crowd, see `crowd.Crowd`: producers and consumers that note what they do.

    python -m actors ROLE NOTES DSN OPTIONS      options as JSON, see `options.Options`

Each says ``ready`` on its standard output and begins when it is told to. Whatever the server or the network does to it,
it notes, and goes on.

A producer is a loop around one of the adapters (`producing`). So is a consumer that asks for messages (`pulling`): with
the native client and with Kombu. Celery's and Dramatiq's consumers are the commands ``celery worker`` and ``dramatiq``,
which call a handler (`handling`).

What the native client answers is noted where it answers. The others claim, settle and renew behind their frameworks' backs,
and are overheard where their engine is asked to (`overhearing`).
"""
