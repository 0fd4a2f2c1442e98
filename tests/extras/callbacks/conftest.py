"""The stand-in for a trainer that the tests of callbacks use."""

from tests.callbacks.conftest import trainer  # noqa: F401
