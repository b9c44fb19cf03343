"""The journal protocol, under the name by which users import it."""

from flowdeco.engine.journal import Codec, Journal, Remembered, Row

__all__ = ["Codec", "Journal", "Remembered", "Row"]
