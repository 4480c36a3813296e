"""What people may change of a run."""

from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

_LINE: Final = r"^[^\x00-\x1f]+$"
_TEXT: Final = r"^[^\x00-\x08\x0b\x0c\x0e-\x1f]*$"
Tag = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=64, pattern=_LINE)]
_FIELDS: Final = {"pinned": "is_pinned", "archived": "is_archived"}
"""Names of labels that differ from those of the request."""


class RunChanges(BaseModel):
    """Changes of a run: only what is named is changed, and something is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=512, pattern=_LINE)] = Field(
        default="", description="In place of the one that its start gave it.", examples=["baseline"]
    )
    tags: Annotated[tuple[Tag, ...], Field(max_length=32)] = Field(default=(), examples=[["paper", "muon"]])
    notes: Annotated[str, StringConstraints(max_length=10_000, pattern=_TEXT)] = ""
    pinned: bool = False
    archived: bool = False

    @model_validator(mode="after")
    def _says_something(self) -> "RunChanges":
        if not self.model_fields_set:
            raise ValueError(f"expected at least one of {', '.join(type(self).model_fields)}")
        return self

    def labels(self) -> dict[str, Any]:
        """What is changed, by the names of labels."""
        return {_FIELDS.get(name, name): value for name, value in self.model_dump(exclude_unset=True).items()}
