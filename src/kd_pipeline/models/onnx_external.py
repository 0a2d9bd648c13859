"""Which files beside it an ONNX graph draws its weights from, read off its protobuf.

onnxruntime does not tell, and onnx itself need not be installed. Only the messages that can hold a
tensor are walked; their numbers are those of onnx.proto, which never change.
"""

from collections.abc import Iterator, Mapping

from kd_pipeline.errors import CheckpointError

_VARINT, _EIGHT_BYTES, _LENGTH_FIRST, _FOUR_BYTES = 0, 1, 2, 5

_SPARSE = "sparse tensor"
_INSIDE: Mapping[str, Mapping[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: _SPARSE},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: _SPARSE, 23: _SPARSE},
    _SPARSE: {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
"""For each message, its fields that can hold a tensor's `external_data`, and what they are."""
_KEY, _VALUE = 1, 2


def external_files(content: bytes) -> frozenset[str]:
    """Every `location` of a tensor's external data, as it is written.

    Raises:
        CheckpointError: If this is no ONNX graph.
    """
    try:
        return frozenset(_locations(memoryview(content), "model"))
    except (IndexError, ValueError, RecursionError) as error:
        raise CheckpointError(f"no readable ONNX graph: {error}") from error


def _locations(message: memoryview, kind: str) -> Iterator[str]:
    if kind == "entry":
        yield from _location(message)
        return
    inside = _INSIDE[kind]
    for number, part in _fields(message):
        if number in inside:
            yield from _locations(part, inside[number])


def _location(entry: memoryview) -> Iterator[str]:
    fields = [(number, bytes(part)) for number, part in _fields(entry)]
    # Whichever of several a reader would take, none goes unseen.
    if (_KEY, b"location") in fields:
        yield from (text.decode() for number, text in fields if number == _VALUE)


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """The fields of a message that are strings, bytes or messages, by number."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        if tag >= 1 << 32:
            raise ValueError("a field's number is longer than 32 bits, which others cut off")
        number, kind = tag >> 3, tag & 7
        if kind == _LENGTH_FIRST:
            length, at = _varint(message, at)
            if at + length > len(message):
                raise ValueError("a part is longer than the whole")
            yield number, message[at : at + length]
            at += length
        elif kind == _VARINT:
            _, at = _varint(message, at)
        elif kind in (_EIGHT_BYTES, _FOUR_BYTES):
            at += 8 if kind == _EIGHT_BYTES else 4
        else:
            raise ValueError(f"field {number} is of unknown kind {kind}")


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number is longer than 64 bits")
