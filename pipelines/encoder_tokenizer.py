"""`EncoderTokenizer`: text to token ids for models that write no text, and need no decoder. No torch."""

from pathlib import Path

from tokenizers import Tokenizer

from quire.config.errors import ModelError


class EncoderTokenizer:
    """The tokenizer.json of an encoder, WordPiece mostly.

    Raises:
        ModelError: the file is missing or no tokenizer.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise ModelError(f"{path}: not found; Quire reads tokenizers in that form")
        try:
            self._backend = Tokenizer.from_file(str(path))
        except Exception as error:  # noqa: BLE001 - the library raises bare Exception
            reason = " ".join(str(error).split())
            raise ModelError(f"{path}: not a tokenizer: {reason}") from None
        # A file may ask for cutting or padding, which would change texts without a word.
        self._backend.no_truncation()
        self._backend.no_padding()

    def encode(self, text: str) -> list[int]:
        """Token ids with those that the model expects around a text."""
        return list(self._backend.encode(text).ids)
