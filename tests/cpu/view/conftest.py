"""The plan that is shown."""

from tests.fixtures.planned import planned

__all__ = ["planned"]
