"""What the tests of executors share with those of the engine."""

from tests.engine.conftest import toy

__all__ = ["toy"]
