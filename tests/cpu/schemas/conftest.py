"""The plan that is described."""

from tests.fixtures.planned import planned

__all__ = ["planned"]
