"""The location of the store: any SQLAlchemy URL, never shown with its password, and its error messages."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import sqlalchemy
from optuna.exceptions import OptunaError
from sqlalchemy.exc import ArgumentError as UrlError
from sqlalchemy.exc import NoSuchModuleError, SQLAlchemyError

from normkit.errors import ArgumentError, NormkitError, StateError

EXAMPLES = "sqlite:///runs.sqlite3 or postgresql+psycopg://user@host/name"
BROKEN = (SQLAlchemyError, OptunaError, ImportError)
"""The errors that optuna and SQLAlchemy raise if a store cannot be used."""


@dataclass(frozen=True)
class Location:
    """A database; as text it shows neither the password nor the options, which may hold secrets too.

    >>> str(Location.of("postgresql+psycopg://user:secret@host/runs?sslpassword=hidden"))
    'postgresql+psycopg://user:***@host/runs'
    """

    url: sqlalchemy.URL = field(repr=False)

    @classmethod
    def of(cls, store: str | Path) -> Location:
        """Make a location from a URL, or from the path of an SQLite file.

        Raises:
            ArgumentError: this is no URL, or SQLAlchemy does not know the database.
        """
        if isinstance(store, Path):
            return cls(sqlalchemy.URL.create("sqlite", database=str(store)))
        try:
            url = sqlalchemy.make_url(store)
            url.get_dialect()
        except (UrlError, NoSuchModuleError, ValueError):
            # A text that is not a URL may still contain a password.
            shown = f"'{store.partition('://')[0]}://...'" if "://" in store else "text that is none"
            # The text of the error may contain it too.
            raise ArgumentError(
                f"store must be the URL of a database that SQLAlchemy knows, such as {EXAMPLES}, got {shown}: correct "
                "it, or leave it out for a file in out"
            ) from None
        except ImportError as error:
            raise cls(url).driver_missing(error) from error
        if url.get_backend_name() == "sqlite" and url.database in (None, "", ":memory:"):
            raise ArgumentError(
                "store must outlive this process, got an SQLite database in memory: name a file, "
                "such as sqlite:///runs.sqlite3"
            )
        return cls(url)

    @property
    def text(self) -> str:
        """The whole URL with the password, for the connection; braces are doubled for optuna."""
        return self.url.render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}")

    @property
    def file(self) -> Path | None:
        """The file of an SQLite database."""
        local = self.url.get_backend_name() == "sqlite" and self.url.database
        return Path(local.removeprefix("file:")) if local else None

    def __str__(self) -> str:
        if self.file is not None:
            return str(self.file)
        return self.url.set(query={}).render_as_string(hide_password=True)

    def driver_missing(self, error: ImportError) -> StateError:
        """The error for a missing driver package of this database."""
        # Optuna raises another error from this one, without the name.
        name = error.name or getattr(error.__cause__, "name", None) or error
        extra = self.url.drivername in ("postgresql", "postgresql+psycopg")
        remedy = 'pip install "normkit[postgres]", and a URL that starts with postgresql+psycopg://'
        return StateError(
            f"the store {self} needs a package that is not installed ({name}): "
            + (remedy if extra else "install it with pip")
        )

    def refusal(self, error: Exception) -> NormkitError:
        """The error for the user, from an error of this database."""
        if isinstance(error, ImportError):
            return self.driver_missing(error)
        text = self._clean(cause(error))
        low = text.lower()
        if "optuna" in low and "version" in low:
            return StateError(
                f"the store must have the tables of the optuna that is installed, but {self} was written by another "
                f"version ({text}): name another store, or update optuna or the store"
            )
        if self.file is None:
            return StateError(
                f"the store must be a database that can be reached and written to, but {self} answers: {text}. "
                "Finished runs are kept: correct this, and the same call continues from them"
            )
        if "full" in low or "no space" in low:
            return StateError(
                f"the store of finished runs needs space, but the disk of {self} is full ({text}): free some, and "
                "the same call continues from the stored runs"
            )
        return StateError(
            f"the store of finished runs must be a file that compare has made and may write to, but {self} cannot "
            f"be opened ({text}): move it away, or choose another folder with out"
        )

    def _clean(self, text: str) -> str:
        secrets = [str(self.url.password or ""), *map(str, self.url.query.values())]
        for secret in secrets:
            if secret:
                text = text.replace(secret, "***")
        return text


def cause(error: BaseException) -> str:
    """The message of the database, in one line."""
    inner = origin_of(error)
    return " ".join(str(inner).split()) or type(inner).__name__


def origin_of(error: BaseException) -> BaseException:
    """The error of the driver, from which SQLAlchemy and optuna raised theirs."""
    while isinstance(error, OptunaError) and error.__cause__ is not None:
        error = error.__cause__
    return getattr(error, "orig", None) or error
