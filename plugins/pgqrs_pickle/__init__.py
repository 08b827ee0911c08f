"""pickle, for classes that the configuration names one by one. Without such a list nothing is pickled or unpickled.

Unpickling runs what the body says. Only classes on the list are ever looked up, but these are trusted with anything the
body passes to them: name classes of plain data, and sign or encrypt the queue where others can write to it.
"""

from pgqrs_pickle.serializer import CONTENT_TYPE, PickleSerializer

__all__ = ["CONTENT_TYPE", "PickleSerializer"]
