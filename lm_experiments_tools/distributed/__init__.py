"""Engines: how ranks work together."""

from .base import Engine, make_engine

__all__ = ["Engine", "make_engine"]
