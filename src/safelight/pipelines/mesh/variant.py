"""Where the networks may depart from the published graph."""

from __future__ import annotations

from pydantic import Field

from safelight.core.options import Settings

_PANEL = {"panel": "Departures from the published graph"}


class Variant(Settings):
    """Departures from the published graph. All off: as published."""

    own_views: bool = Field(
        False,
        description="Coarse network: look each view up in its own maps; as published, all look at the first view's.",
        json_schema_extra=_PANEL,
    )
    unpool_first: bool = Field(
        False,
        description="Coarse network: subdivide before features are looked up, not after (Design B).",
        json_schema_extra=_PANEL,
    )
    signed_scores: bool = Field(
        False, description="Refining network: no ReLU on the scores (Design B).", json_schema_extra=_PANEL
    )
    border_sampling: bool = Field(
        False,
        description="Refining network: the common bilinear rule, also at whole pixels and edges (Design B).",
        json_schema_extra=_PANEL,
    )
    unit_origin: bool = Field(
        False,
        description="Refining network: cameras at distance 1, the first one's frame taken for the world (Design B).",
        json_schema_extra=_PANEL,
    )

    def also(self, other: Variant) -> Variant:
        """Return the departures of both."""
        return Variant(**{name: getattr(self, name) or getattr(other, name) for name in Variant.model_fields})

    def names(self) -> tuple[str, ...]:
        """Return the names of the departures that are on."""
        return tuple(name for name in Variant.model_fields if getattr(self, name))
