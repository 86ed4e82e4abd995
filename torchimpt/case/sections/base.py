"""What a section of the case file is: declared keys only, or those of the class that it names, too."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any, ClassVar, get_type_hints

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, model_validator

from torchimpt.checks import nearest


class Section(BaseModel):
    """A section of the case file: no key that is not declared, and nothing changes after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class OpenSection(Section):
    """A section that names a class, and takes that class's own parameters as keys: what is registered brings its keys along."""

    model_config = ConfigDict(extra="allow")

    names: ClassVar[str]
    """The key that names the class."""
    registry: ClassVar[Mapping[str, Callable[..., Any]]]
    """The classes by name."""
    given: ClassVar[Collection[str]] = ()
    """Parameters that the section's declared keys stand for."""

    @property
    def own(self) -> dict[str, Any]:
        """What the file gives of the class's own parameters."""
        return dict(self.model_extra or {})

    @model_validator(mode="after")
    def _own_keys(self) -> OpenSection:
        """The keys that this class takes: no more, no fewer, each of its type."""
        made = self.registry[getattr(self, self.names)]
        parameters = {name: p for name, p in inspect.signature(made).parameters.items() if name not in self.given}
        what, hints = f"{self.names} = '{getattr(self, self.names)}'", get_type_hints(made)
        extra = self.model_extra or {}
        for name, value in self.own.items():
            if name not in parameters:
                allowed = (*type(self).model_fields, *parameters)
                raise ValueError(f"{what} takes no {name}{nearest(name, allowed)}; it takes {', '.join(allowed)}")
            try:
                extra[name] = TypeAdapter(hints.get(name, Any), config=ConfigDict(strict=True, allow_inf_nan=False)).validate_python(value)
            except ValidationError as error:
                raise ValueError(f"{name} {error.errors()[0]['msg'].replace('Input should be', 'must be')}, got {value!r}") from None
        for name, parameter in parameters.items():
            if parameter.default is parameter.empty and name not in extra:
                raise ValueError(f"{what} needs {name}")
        return self
