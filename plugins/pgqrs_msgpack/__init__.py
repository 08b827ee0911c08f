"""MessagePack, by msgspec: smaller than JSON and as fast, typed, with bytes, NaN and times as they are.

It is used where the sender or the configuration asks for it: ``content_type="application/vnd.msgpack"``, or
``plugins.content_types: ["*=application/vnd.msgpack"]``.
"""

from pgqrs_msgpack.plugin import CONTENT_TYPE, MsgpackSerializer

__all__ = ["CONTENT_TYPE", "MsgpackSerializer"]
