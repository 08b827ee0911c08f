"""Pickling and unpickling within a list of classes."""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterable
from typing import Any, Final

from pgqrs_core.errors import DecodeError, EncodeError, PayloadMismatch
from pgqrs_core.payload_types import reason_of, shown

__all__ = ["CONTENT_TYPE", "PickleSerializer", "class_name"]

CONTENT_TYPE: Final = "application/x-python-pickle"


class _NotAllowed(pickle.UnpicklingError):
    """A body names something that is not on the list."""


class _Unpickler(pickle.Unpickler):
    """Looks up classes of the list and nothing else: whatever a body wants to call goes through here."""

    def __init__(self, body: bytes, allowed: frozenset[str]) -> None:
        super().__init__(io.BytesIO(body))
        self._allowed = allowed

    def find_class(self, module: str, name: str) -> Any:
        wanted = f"{module}:{name}"
        if wanted not in self._allowed:
            raise _NotAllowed(f"class {wanted[:200]} is not allowed; see plugins.pickle.classes")
        found = super().find_class(module, name)
        if not isinstance(found, type):
            raise _NotAllowed(f"{wanted[:200]} is not a class")
        return found

    def persistent_load(self, pid: Any) -> Any:
        raise _NotAllowed("it refers to objects outside of it")


class PickleSerializer:
    """Pickles of the classes on a list, and of what Python has literals for: numbers, texts, lists, dicts, tuples, sets.

    Args:
        classes: as ``module:qualified.name``, exactly; subclasses are others.
    """

    content_type = CONTENT_TYPE

    def __init__(self, classes: Iterable[str] = ()) -> None:
        self._allowed = frozenset(classes)

    def handles(self, payload: Any) -> bool:
        """Return whether the payload's own class is on the list."""
        return bool(self._allowed) and class_name(type(payload)) in self._allowed

    def encode(self, payload: Any) -> bytes:
        """Return the pickle of ``payload``, which is read back once: what could not be read must not be sent.

        Raises:
            EncodeError: No class is allowed, or it holds one that is not, or cannot be pickled.
        """
        self._check(EncodeError)
        try:
            body = pickle.dumps(payload, protocol=5)
            _Unpickler(body, self._allowed).load()
        except Exception as error:
            raise EncodeError(CONTENT_TYPE, reason_of(error)) from error
        return body

    def decode(self, body: bytes, type_: Any = Any) -> Any:
        """Return the object; ``type_`` may be a class of which it must be.

        Raises:
            DecodeError: No class is allowed, or it names one that is not, or it is no pickle. Nothing of it was run.
            PayloadMismatch: It is of another class than ``type_``.
        """
        self._check(DecodeError)
        try:
            found = _Unpickler(body, self._allowed).load()
        except Exception as error:
            raise DecodeError(CONTENT_TYPE, reason_of(error)) from error
        if type_ is not Any and isinstance(type_, type) and not isinstance(found, type_):
            raise PayloadMismatch(shown(type_), "$", f"Expected `{shown(type_)}`, got `{type(found).__name__}`")
        return found

    def _check(self, error: type[EncodeError | DecodeError]) -> None:
        if not self._allowed:
            raise error(CONTENT_TYPE, "no class is allowed; name those to be trusted in plugins.pickle.classes")


def class_name(cls: type) -> str:
    """Return how a class is named in the configuration."""
    return f"{cls.__module__}:{cls.__qualname__}"
