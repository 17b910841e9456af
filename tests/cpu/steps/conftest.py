"""The plan that is reported."""

from tests.fixtures.planned import planned

__all__ = ["planned"]
