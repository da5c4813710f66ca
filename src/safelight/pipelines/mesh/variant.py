"""Where the networks may depart from the published graph."""

from __future__ import annotations

from typing import Any, Self

from pydantic import Field

from safelight.core.options import Settings

PANEL = "Departures from the published graph"


def departure(description: str) -> Any:
    """Return an option that is off as published."""
    return Field(False, description=description, json_schema_extra={"panel": PANEL, "one_way": True})


class CoarseVariant(Settings):
    """Departures of the coarse network."""

    own_views: bool = departure(
        "Coarse network: look each view up in its own maps; as published, all look at the first view's."
    )
    unpool_first: bool = departure("Coarse network: subdivide before features are looked up, not after (Design B).")


class RefineVariant(Settings):
    """Departures of the refining network."""

    signed_scores: bool = departure("Refining network: no ReLU on the scores (Design B).")
    border_sampling: bool = departure(
        "Refining network: the common bilinear rule, also at whole pixels and edges (Design B)."
    )
    unit_origin: bool = departure(
        "Refining network: cameras at distance 1, the first one's frame taken for the world (Design B)."
    )


class Variant(CoarseVariant, RefineVariant):
    """Departures of both networks. All off: as published."""

    @classmethod
    def of(cls, options: Settings) -> Self:
        """Return the departures among a command's options."""
        return cls(**{name: getattr(options, name, False) for name in cls.model_fields})

    def also(self, other: Self) -> Self:
        """Return the departures of both."""
        return type(self)(**{name: getattr(self, name) or getattr(other, name) for name in type(self).model_fields})

    def names(self) -> list[str]:
        """Return the names of the departures that are on."""
        return [name for name in type(self).model_fields if getattr(self, name)]
