"""What one item is: a triplet of images, a whole data set to train on, a scene, a checkpoint."""

from __future__ import annotations

from safelight.core.errors import InputError, UsageError
from safelight.core.pipeline import Found, Item
from safelight.formats.weights import SAFETENSORS
from safelight.pipelines.decloud.options import ConvertOptions, PredictOptions, TestOptions, TrainOptions
from safelight.pipelines.decloud.triplets import TABLE, leaks, read_data_set

SCENE_SUFFIXES = (".tif", ".tiff")


def find_triplets(options: TestOptions) -> Found:
    """Find the triplets of the split to test on; all of them where the data set has none of that split."""
    data = read_data_set(options.data, options.table)
    chosen = data.of(options.split) or data.triplets
    return Found(tuple(Item(triplet.name, triplet.paths, triplet) for triplet in chosen), data.refused)


def find_training_set(options: TrainOptions) -> Found:
    """Find the data set to train on: one item, whose images are read while training goes on.

    Raises
    ------
    InputError
        A scene is in two splits: validation would see what was trained on.
    """
    data = read_data_set(options.data, options.table)
    leaking = leaks(data.triplets)
    if leaking and not options.allow_leaks:
        scene, splits = next(iter(leaking.items()))
        raise InputError(
            f"{len(leaking)} scene(s) are in more than one split, for instance {scene} in {' and '.join(splits)}",
            path=options.table or options.data,
            expected="every scene in one split: neighbouring patches are alike",
            remedy="split by scene, or --allow-leaks",
        )
    if not data.of("train"):
        return Found((), data.refused)
    table = options.table or options.data / TABLE
    # The table alone stands for the data: taking digests of hundreds of gigabytes would take hours.
    return Found((Item("model", (table,) if table.is_file() else (), data),), data.refused)


def find_scene(options: PredictOptions) -> Found:
    """Find the scene to clear.

    Raises
    ------
    InputError
        A file is not there.
    UsageError
        The result would replace an input, or is not a GeoTIFF.
    """
    inputs = tuple(path for path in (options.s2, options.s1, options.mask) if path is not None)
    for path in inputs:
        if not path.is_file():
            raise InputError("there is no such file", path=path)
        if path.resolve() == options.out.resolve():
            raise UsageError("the result would replace an input", path=options.out, remedy="another --out")
    if options.out.suffix.lower() not in SCENE_SUFFIXES:
        raise UsageError(f"--out {options.out}: the result is a GeoTIFF", expected="a name that ends in .tif")
    return Found((Item(options.out.stem, inputs),))


def find_checkpoint(options: ConvertOptions) -> Found:
    """Find the checkpoint to convert.

    Raises
    ------
    InputError
        There is none.
    UsageError
        The output is not a safetensors file, or is the input.
    """
    if not options.input.is_file():
        raise InputError("there is no such file of weights", path=options.input)
    if options.out.suffix != SAFETENSORS:
        raise UsageError(
            f"{options.out}: models are {SAFETENSORS} files", remedy=f"name one that ends in {SAFETENSORS}"
        )
    if options.out.resolve() == options.input.resolve():
        raise UsageError("the model would replace its checkpoint", path=options.out, remedy="another name")
    return Found((Item(options.out.stem, (options.input,), options.input),))
