"""Byte sources in memory, one of which counts."""


class BytesSource:
    """Bytes as a ByteSource, counting what is read of them."""

    def __init__(self, data: bytes, name: str = "test.gguf", size: int | None = None) -> None:
        self.name = name
        self.size = len(data) if size is None else size
        self.bytes_read = 0
        self._data = data

    def read_at(self, offset: int, n: int) -> bytes:
        data = self._data[offset : offset + n]
        self.bytes_read += len(data)
        return data
