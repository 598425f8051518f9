"""Zip archives of uncompressed members: read piece by piece, with every member checked against its
checksum."""

import os
import struct
import zipfile
import zlib

import numpy as np

from videomar_jax.interop.formats.base import ByteFile, WeightFileError

_LOCAL = struct.Struct("<4s5H3I2H")
"""The header in front of a member; its last two fields are the lengths of its name and extra data,
which follow."""
_CHUNK = 4 * 2**20
"""Bytes that are read at a time for a checksum."""
_DAMAGE = (
    zipfile.BadZipFile,
    NotImplementedError,
    OSError,
    OverflowError,
    RuntimeError,
    ValueError,
    struct.error,
)
"""What `zipfile` raises for damaged archives."""


class StoredZip:
    """The members of an archive by name. A member that is never asked for is not looked at.

    Attributes:
        sizes: bytes of each member.
    Raises:
        WeightFileError: the directory of the archive is damaged.
    """

    def __init__(self, path: str | os.PathLike):
        self._bytes = ByteFile(path)
        self.path = self._bytes.path
        try:
            with zipfile.ZipFile(path) as archive:
                self._members = {info.filename: info for info in archive.infolist()}
                if len(self._members) < len(archive.infolist()):
                    raise WeightFileError(
                        f"{path} is corrupt: two members of the archive have the same name."
                    )
        except WeightFileError:
            self.close()
            raise
        except _DAMAGE as error:
            self.close()
            raise WeightFileError(
                f"{path} is truncated or corrupt: not a readable zip archive ({error})."
            ) from error
        self.sizes = {name: info.file_size for name, info in self._members.items()}
        self._starts: dict[str, int] = {}
        self._verified: set[str] = set()

    def locate(self, name: str) -> int:
        """The position where the member's bytes begin.

        Raises:
            WeightFileError: they are not all in the file, or not stored plainly.
        """
        if name not in self._starts:
            self._starts[name] = self._find(self._members[name])
        return self._starts[name]

    def _find(self, info: zipfile.ZipInfo) -> int:
        is_encrypted = info.flag_bits & 1
        is_stored = info.compress_type == zipfile.ZIP_STORED
        if not is_stored or is_encrypted or info.compress_size != info.file_size:
            raise WeightFileError(
                f"{self.path}: {info.filename!r} is compressed, encrypted or damaged."
            )
        fields = _LOCAL.unpack(self._bytes.read(info.header_offset, _LOCAL.size).tobytes())
        start = info.header_offset + _LOCAL.size + fields[-2] + fields[-1]
        if fields[0] != b"PK\x03\x04" or start + info.file_size > self._bytes.size:
            raise WeightFileError(
                f"{self.path} is truncated or corrupt: the member {info.filename!r} is not in "
                f"place."
            )
        return start

    def read(self, name: str, begin: int = 0, end: int | None = None) -> np.ndarray:
        """Bytes begin..end of a member, uint8.

        Raises:
            WeightFileError: as `locate`, or the checksum of the whole member is wrong; it is
                computed when the member is first read.
        """
        start, size = self.locate(name), self.sizes[name]
        if end is None:
            end = size
        whole = (begin, end) == (0, size)
        if not whole and name not in self._verified:
            checksum = 0
            for place in range(0, size, _CHUNK):
                chunk = self._bytes.read(start + place, min(_CHUNK, size - place))
                checksum = zlib.crc32(chunk, checksum)
            self._compare(name, checksum)
        out = self._bytes.read(start + begin, end - begin)
        if whole and name not in self._verified:
            self._compare(name, zlib.crc32(out))
        return out

    def _compare(self, name: str, checksum: int) -> None:
        if checksum != self._members[name].CRC:
            raise WeightFileError(
                f"{self.path} is corrupt: the checksum of its member {name!r} is wrong."
            )
        self._verified.add(name)

    def close(self) -> None:
        """Closes the file."""
        self._bytes.close()
