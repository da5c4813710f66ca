"""From options and images to what is trained and how: every choice made for the user is said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from safelight.core.errors import InputError
from safelight.core.events import EventLog
from safelight.core.execute import Executor
from safelight.core.pipeline import Item
from safelight.core.plan import Plan
from safelight.formats.microscopy import ImageFile
from safelight.pipelines.denoise.footprint import plan_step
from safelight.pipelines.denoise.inspection import suggest_structure
from safelight.pipelines.denoise.masking import MaskingSettings, Replacement
from safelight.pipelines.denoise.network import Architecture
from safelight.pipelines.denoise.options import TrainingOptions
from safelight.pipelines.denoise.structure import Structure, format_structure, line, parse_structure
from safelight.pipelines.denoise.training import TrainingSettings

PLANES_FOR_3D = 16
RADIUS: dict[Replacement, int] = {"median": 2, "mean": 2, "uniform": 5}


@dataclass(frozen=True)
class Setup:
    """What is trained and how."""

    architecture: Architecture
    masking: MaskingSettings
    training: TrainingSettings

    def plan(self, patch: tuple[int, ...], executor: Executor, data_bytes: int = 0) -> Plan:
        """Return the memory plan of a training step; see ``plan_step``."""
        return plan_step(self.architecture, self.masking, patch, self.training.batch_size, executor, data_bytes)


def choose_setup(
    items: Sequence[Item], images: Sequence[ImageFile], options: TrainingOptions, events: EventLog
) -> Setup:
    """Choose network, masking and training for the images; options decide where they are given."""
    n2v2 = options.method == "n2v2"
    dims = _dimensions(items, options, events)
    channels = items[0].payload.channels
    if channels > 1 and not options.joint_channels:
        events.info("channels_apart", channels=channels)
    architecture = Architecture(
        dims=dims,
        channels=channels,
        joint=options.joint_channels,
        depth=options.depth,
        features=options.features,
        residual=_either(options.residual, not n2v2),
        top_skip=_either(options.top_skip, not n2v2),
        blur_pool=_either(options.blur_pool, n2v2),
    )
    replacement: Replacement = options.replacement or ("median" if n2v2 else "uniform")
    masking = MaskingSettings(
        replacement=replacement,
        radius=RADIUS[replacement],
        structure=_structure(images, options, events),
        **({} if options.mask_percentage is None else {"percent": options.mask_percentage}),
    )
    given = {
        "steps": options.steps,
        "time_budget": options.time_budget,
        "batch_size": options.batch_size,
        "patch_size": options.patch_size,
        "learning_rate": options.learning_rate,
    }
    training = TrainingSettings(
        augment=options.augment,
        validation_patches=options.validation_patches,
        seed=options.seed,
        **{name: value for name, value in given.items() if value is not None},
    )
    return Setup(architecture, masking, training)


def _either(given: bool | None, default: bool) -> bool:
    return default if given is None else given


def _dimensions(items: Sequence[Item], options: TrainingOptions, events: EventLog) -> Literal[2, 3]:
    planes = min(item.payload.size("Z") for item in items)
    if options.dimensions == "2":
        return 2
    if options.dimensions == "3":
        if planes < 2:
            raise InputError("--dimensions 3 needs volumes, and an image has no Z", remedy="--dimensions 2, or --axes")
        return 3
    dims: Literal[2, 3] = 3 if planes >= PLANES_FOR_3D else 2
    if planes > 1:
        events.info("dimensions_chosen", dims=dims, planes=planes)
    return dims


def _structure(images: Sequence[ImageFile], options: TrainingOptions, events: EventLog) -> Structure:
    if options.structure == "none":
        return ()
    if options.structure == "auto":
        structure = suggest_structure(images[0])
        events.info("structure_chosen", structure=format_structure(structure))
        return structure
    match options.structure:
        case "horizontal" | "vertical" | "cross" as axis:
            return line(options.structure_radius, axis)
    return parse_structure(options.structure)
