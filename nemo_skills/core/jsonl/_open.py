"""The text of a file, uncompressed as its name says."""

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nemo_skills.core.errors import UserError

_PIECE = 256 << 10
# a small piece of compressed text can become a large one
_COMPRESSED_PIECE = 16 << 10


def iter_text(path: Path) -> Iterator[bytes]:
    """Yield the contents of a file in pieces; `.gz` and `.zst` files are decompressed on the way.

    Raises:
        UserError: the file cannot be read, or is not what its name says, or ends too early.
    """
    with _read_errors(path):
        if path.suffix == ".zst":
            yield from _iter_zstd(path)
        elif path.suffix == ".gz":
            with gzip.open(path, "rb") as file:
                while piece := file.read(_PIECE):
                    yield piece
        else:
            with path.open("rb", buffering=0) as file:
                while piece := file.read(_PIECE):
                    yield piece


def _iter_zstd(path: Path) -> Iterator[bytes]:
    import zstandard

    decompressor = zstandard.ZstdDecompressor()
    frame = decompressor.decompressobj()
    begun = False
    with path.open("rb", buffering=0) as file:
        while piece := file.read(_COMPRESSED_PIECE):
            while piece:
                begun = True
                try:
                    text = frame.decompress(piece)
                except zstandard.ZstdError as error:
                    raise UserError(f"{path} is not valid zstd data: {error}.") from None
                if text:
                    yield text
                piece = b""
                if frame.eof:
                    piece, frame, begun = frame.unused_data, decompressor.decompressobj(), False
    # the library does not mind
    if begun:
        raise UserError(f"{path} ends in the middle of its zstd data; is the copy complete?")


@contextmanager
def _read_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except EOFError:
        raise UserError(f"{path} ends in the middle of its gzip data; is the copy complete?") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path} is not valid gzip data: {error}.") from None
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from error
