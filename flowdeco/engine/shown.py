"""Values that actions show: rendered as text, as HTML or as an image when `ctx.show` is called, and bounded.

A value is recognised by what it offers: `savefig` of a figure, the `_repr_*_` methods of notebooks, the first bytes of an
image. So nothing is imported here that the program has not loaded.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from io import BytesIO
from typing import Any, Final, cast

from flowdeco.engine.messages import shown
from flowdeco.errors import without_addresses

__all__ = ["LARGEST", "rendered", "size"]

LARGEST: Final = 1_000_000  # bytes of one value

_IMAGES: Final = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg", b"GIF8": "image/gif"}
_BYTES: Final[Any] = (bytes, bytearray, memoryview)
_METHODS: Final = {
    "_repr_html_": "text/html", "_repr_svg_": "image/svg+xml", "_repr_png_": "image/png", "_repr_jpeg_": "image/jpeg",
    "_repr_markdown_": "text/markdown",
}  # fmt: skip


def rendered(value: object) -> dict[str, str]:
    """Return a value as its type, its content (of images in Base64), and a note of what was cut."""
    if isinstance(value, str):
        return _as_text("text/markdown", value)
    for kind, content in _forms(value):
        if isinstance(content, str) and not kind.startswith("image/"):
            return _as_text(kind, without_addresses(content) if kind == "text/plain" else content)
        if isinstance(content, str) and kind == "image/svg+xml":
            return _as_image(kind, content.encode())
        if isinstance(content, _BYTES) and _image_type(content):
            return _as_image(kind, bytes(cast("bytes", content)))
    return _as_text("text/plain", shown(value))


def size(count: int) -> str:
    """Return a number of bytes for people."""
    if count < 1e3:
        return f"{count} byte{'s' * (count != 1)}"
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


def _forms(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the forms that a value has, the best first; a method that fails has none to offer."""
    if isinstance(value, _BYTES):
        yield _image_type(value), value
        return
    if isinstance(value, type):
        return
    save = getattr(value, "savefig", None)
    if callable(save):
        yield "image/png", _made(lambda: _saved(save))
    for name, kind in _METHODS.items():
        method = getattr(value, name, None)
        if callable(method):
            yield kind, _data(_made(method))
    method = getattr(value, "_repr_mimebundle_", None)
    bundle = _data(_made(partial(method, include=None, exclude=None))) if callable(method) else None
    if isinstance(bundle, Mapping):
        for kind in (*_METHODS.values(), "text/plain"):
            content: Any = cast("Mapping[str, Any]", bundle).get(kind)
            is_coded = isinstance(content, str) and kind in _IMAGES.values()
            yield kind, _made(partial(b64decode, content)) if is_coded else content


def _data(content: Any) -> Any:
    """Return what such a method returned, without the metadata that some add."""
    first: Any = content
    return first[0] if isinstance(content, tuple) and content else first


def _made(method: Callable[[], Any]) -> Any:
    try:
        return method()
    except Exception:
        return None


def _saved(save: Callable[..., Any]) -> bytes:
    buffer = BytesIO()
    save(buffer, format="png", bbox_inches="tight")
    return buffer.getvalue()


def _image_type(content: Any) -> str:
    start = bytes(content[:16])
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "image/webp"
    return next((kind for magic, kind in _IMAGES.items() if start.startswith(magic)), "")


def _as_text(kind: str, text: str) -> dict[str, str]:
    encoded = text.encode("utf-8", "backslashreplace")
    if len(encoded) <= LARGEST:
        return {"type": kind, "content": encoded.decode(), "note": ""}
    note = f"cut: the first {size(LARGEST)} of {size(len(encoded))}"
    return {"type": kind, "content": encoded[:LARGEST].decode("utf-8", "ignore"), "note": note}


def _as_image(kind: str, content: bytes) -> dict[str, str]:
    if len(content) > LARGEST:
        return {
            "type": kind,
            "content": "",
            "note": f"an image of {size(len(content))} is not kept: {size(LARGEST)} at most",
        }
    return {"type": kind, "content": b64encode(content).decode(), "note": ""}
