"""A trained model for other programs: ONNX, and a package of the BioImage Model Zoo. Both take raw pixels."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from safelight.core.errors import OutputError, UsageError
from safelight.core.files import atomic_write
from safelight.kernels.gaussian import gaussian_filter
from safelight.kernels.tiles import aligned
from safelight.pipelines.denoise.model import DenoiseModel
from safelight.pipelines.denoise.network import Architecture
from safelight.pipelines.denoise.prediction import Predictor

if TYPE_CHECKING:
    from bioimageio.spec.model.v0_5 import ChannelAxis, InputTensorDescr, LicenseId, ModelDescr, OutputTensorDescr

ONNX_NAME = "model.onnx"
PACKAGE_NAME = "model.bmz.zip"
OPSET = 18
LARGEST_DIFFERENCE = 1e-5
"""Between ONNX and PyTorch, in standard deviations of the training data."""

_CITATIONS = (
    ("Krull et al. 2019, Noise2Void – Learning Denoising from Single Noisy Images", "10.1109/CVPR.2019.00223"),
    ("Höck et al. 2022, N2V2 – Fixing Noise2Void Checkerboard Artifacts", "10.1007/978-3-031-25069-9_33"),
)


def export_onnx(model: DenoiseModel, folder: Path) -> Path:
    """Write a network that takes raw pixels and returns denoised pixels, checked against PyTorch.

    Its one input, (B, C, [Z,] Y, X) float32, may have any sizes that are multiples of ``architecture.alignment``.

    Returns
    -------
    Path
        ``model.onnx`` in ``folder``.

    Raises
    ------
    UsageError
        The extra ``onnx`` is not installed.
    OutputError
        The file cannot be written, or does not compute what PyTorch computes.
    """
    _require("onnx", "onnx", "onnxruntime", "onnxscript")
    path = folder / ONNX_NAME
    predictor = Predictor(model).eval()
    noisy = example_input(predictor, model.architecture)
    with atomic_write(path) as temporary:
        _write_onnx(predictor, noisy, model.architecture, temporary)
        _check_onnx(predictor, noisy, temporary, path)
    return path


def export_bmz(
    model: DenoiseModel,
    folder: Path,
    *,
    authors: Sequence[str] = (),
    licence: str,
) -> Path:
    """Write a package of the BioImage Model Zoo (description 0.5, ONNX weights), tested by ``bioimageio.core``.

    The package normalises by the training data's mean and standard deviation itself. Its example is synthetic: no
    pixel of the training images leaves the house.

    Parameters
    ----------
    model : DenoiseModel
    folder : Path
    authors : sequence of str
    licence : str
        SPDX identifier of the licence under which the weights are given away.

    Returns
    -------
    Path
        ``model.bmz.zip`` in ``folder``.

    Raises
    ------
    UsageError
        The extra ``bmz`` is not installed, or the licence is unknown.
    OutputError
        The package cannot be written, or ``bioimageio.core`` finds that it does not work.
    """
    _require("bmz", "bioimageio.core", "onnx", "onnxruntime", "onnxscript")
    from bioimageio.spec import save_bioimageio_package

    path, licence_id = folder / PACKAGE_NAME, _licence(licence)
    with _quiet_bioimageio(), TemporaryDirectory() as sources, atomic_write(path) as temporary:
        description = _describe(model, Path(sources), authors, licence_id)
        save_bioimageio_package(description, output_path=temporary, local_files_only=True)
        check_bmz(temporary, path)
    return path


def check_bmz(package: Path, shown_as: Path | None = None) -> None:
    """Run a package's own tests with ``bioimageio.core``, offline.

    Raises
    ------
    OutputError
        A test fails.
    """
    from bioimageio.core import test_model

    summary = test_model(package)
    if summary.status == "passed":
        return
    problems = [f"{error.msg}" for detail in summary.details for error in detail.errors]
    raise OutputError(
        f"bioimageio.core finds that the package does not work: {'; '.join(problems) or summary.status}",
        path=shown_as or package,
        expected="a package whose test output agrees with its test input",
        remedy="update bioimageio.core and onnxruntime",
    )


def example_input(predictor: Predictor, architecture: Architecture) -> Tensor:
    """Return a synthetic noisy image in the units of the training data, (1, C, [Z,] Y, X) float32, seeded."""
    a = architecture
    side = _smallest_side(a)
    shape = (a.channels, *((2 * a.alignment,) if a.dims == 3 else ()), side, side)
    generator = torch.Generator().manual_seed(0)
    blobs = gaussian_filter(torch.randn(shape, generator=generator), 4.0, a.dims)
    structure = (blobs / blobs.std() - 0.5).clamp(min=0)
    normalised = structure + 0.3 * torch.randn(shape, generator=generator)
    return (normalised * predictor.std + predictor.mean)[None]


def _smallest_side(architecture: Architecture) -> int:
    """Return the smallest side of a plane of which something is left after cropping what borders influence."""
    return aligned(2 * _halo(architecture) + 1, architecture.alignment)


def _halo(architecture: Architecture) -> int:
    return aligned(architecture.receptive_radius, architecture.alignment)


def _require(extra: str, *modules: str) -> None:
    for module in modules:
        root = module.partition(".")[0]
        if importlib.util.find_spec(root) is None or importlib.util.find_spec(module) is None:
            raise UsageError(
                f"the package {module!r}, which this export needs, is not installed",
                remedy=f"pip install safelight[{extra}]",
            )


def _write_onnx(module: nn.Module, example: Tensor, architecture: Architecture, path: Path) -> None:
    names = ("z", "y", "x")[-architecture.dims :]
    sizes: dict[int, Any] = {0: torch.export.Dim("batch")}
    sizes |= {axis: architecture.alignment * torch.export.Dim(name) for axis, name in enumerate(names, start=2)}
    # Two examples in a batch: the exporter takes a size of 1 for a constant.
    examples = example.expand(2, *example.shape[1:])
    with _quiet_exporter():
        program = torch.onnx.export(
            module,
            (examples,),
            dynamo=True,
            dynamic_shapes=(sizes,),
            input_names=["noisy"],
            output_names=["denoised"],
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None
    program.save(path)


def _check_onnx(predictor: Predictor, noisy: Tensor, written: Path, path: Path) -> None:
    """Compare with PyTorch at another size and batch than those exported."""
    import onnxruntime

    wider = torch.cat((noisy, noisy.flip(-1)), -1).expand(3, *noisy.shape[1:-1], -1).contiguous()
    session = onnxruntime.InferenceSession(str(written), providers=["CPUExecutionProvider"])
    found = torch.from_numpy(session.run(None, {"noisy": wider.numpy()})[0])
    with torch.no_grad():
        expected = predictor(wider)
    difference = float(((found - expected).abs() / predictor.std).max())
    if not difference <= LARGEST_DIFFERENCE:
        raise OutputError(
            f"the ONNX network differs from PyTorch by {difference:.2g} standard deviations",
            path=path,
            expected=f"at most {LARGEST_DIFFERENCE:g}",
            remedy="update onnxruntime and onnxscript",
        )


def _describe(model: DenoiseModel, sources: Path, authors: Sequence[str], licence: LicenseId) -> ModelDescr:
    """Write what goes into the package, and describe it."""
    from bioimageio.spec.common import FileDescr
    from bioimageio.spec.model import v0_5

    predictor = Predictor(model).eval()
    noisy = example_input(predictor, model.architecture)
    with torch.no_grad():
        denoised = predictor(noisy)
    _write_onnx(predictor.network, noisy, model.architecture, sources / ONNX_NAME)
    np.save(sources / "test_input.npy", noisy.numpy())
    np.save(sources / "test_output.npy", denoised.numpy())
    _draw_cover(noisy, denoised, sources / "cover.png")
    (sources / "README.md").write_text(_documentation(model), encoding="utf-8")
    return v0_5.ModelDescr(
        name=_name(model.architecture),
        description="Denoises microscopy images; trained on noisy images alone (Noise2Void, N2V2).",
        authors=[v0_5.Author(name=author) for author in authors],
        license=licence,
        cite=[v0_5.CiteEntry(text=text, doi=v0_5.Doi(doi)) for text, doi in _CITATIONS],
        documentation=FileDescr(source=sources / "README.md"),
        covers=[FileDescr(source=sources / "cover.png")],
        tags=["denoising", "image-restoration", "noise2void", "n2v2", "unet", f"{model.architecture.dims}d"],
        inputs=[_input_tensor(model, sources)],
        outputs=[_output_tensor(model, sources)],
        weights=v0_5.WeightsDescr(onnx=v0_5.OnnxWeightsDescr(source=sources / ONNX_NAME, opset_version=OPSET)),
    )


def _name(architecture: Architecture) -> str:
    return f"Safelight {architecture.dims}D denoising"


def _licence(licence: str) -> LicenseId:
    from bioimageio.spec.model import v0_5
    from pydantic import ValidationError

    try:
        return v0_5.LicenseId(licence)
    except ValidationError:
        raise UsageError(
            f"{licence!r} is not a licence that the BioImage Model Zoo knows",
            expected="an SPDX identifier such as CC-BY-4.0, CC0-1.0 or MIT",
        ) from None


def _input_tensor(model: DenoiseModel, sources: Path) -> InputTensorDescr:
    from bioimageio.spec.common import FileDescr
    from bioimageio.spec.model import v0_5

    a = model.architecture
    planar = v0_5.ParameterizedSize(min=_smallest_side(a), step=a.alignment)
    sizes = {"y": planar, "x": planar}
    if a.dims == 3:
        sizes = {"z": v0_5.ParameterizedSize(min=a.alignment, step=a.alignment), **sizes}
    mean_and_deviation = v0_5.FixedZeroMeanUnitVarianceAlongAxisKwargs(
        axis=v0_5.AxisId("channel"), mean=list(model.normalisation.mean), std=list(model.normalisation.std)
    )
    return v0_5.InputTensorDescr(
        id=v0_5.TensorId("noisy"),
        description="Noisy pixels as they were recorded, in the units of the training images.",
        axes=[
            v0_5.BatchAxis(),
            _channel_axis(a.channels),
            *(v0_5.SpaceInputAxis(id=v0_5.AxisId(axis), size=size) for axis, size in sizes.items()),
        ],
        preprocessing=[v0_5.FixedZeroMeanUnitVarianceDescr(kwargs=mean_and_deviation)],
        test_tensor=FileDescr(source=sources / "test_input.npy"),
    )


def _output_tensor(model: DenoiseModel, sources: Path) -> OutputTensorDescr:
    from bioimageio.spec.common import FileDescr
    from bioimageio.spec.model import v0_5

    a = model.architecture

    def size_of(axis: str) -> v0_5.SizeReference:
        return v0_5.SizeReference(tensor_id=v0_5.TensorId("noisy"), axis_id=v0_5.AxisId(axis))

    # No halo in Z: stacks are rarely as deep as two halos, and are taken whole.
    depth = [v0_5.SpaceOutputAxis(id=v0_5.AxisId("z"), size=size_of("z"))] if a.dims == 3 else []
    plane = [
        v0_5.SpaceOutputAxisWithHalo(id=v0_5.AxisId(axis), size=size_of(axis), halo=_halo(a)) for axis in ("y", "x")
    ]
    units = v0_5.ScaleLinearAlongAxisKwargs(
        axis=v0_5.AxisId("channel"), gain=list(model.normalisation.std), offset=list(model.normalisation.mean)
    )
    return v0_5.OutputTensorDescr(
        id=v0_5.TensorId("denoised"),
        description="Denoised pixels, in the units of the input.",
        axes=[v0_5.BatchAxis(), _channel_axis(a.channels), *depth, *plane],
        postprocessing=[v0_5.ScaleLinearDescr(kwargs=units)],
        test_tensor=FileDescr(source=sources / "test_output.npy"),
    )


def _channel_axis(channels: int) -> ChannelAxis:
    from bioimageio.spec.model import v0_5

    return v0_5.ChannelAxis(channel_names=[v0_5.Identifier(f"channel{number}") for number in range(channels)])


def _draw_cover(noisy: Tensor, denoised: Tensor, path: Path) -> None:
    """Write the example before and after, side by side, twice as wide as high."""
    from matplotlib.image import imsave

    planes = [image[0, 0].reshape(-1, *image.shape[-2:]) for image in (noisy, denoised)]
    pair = torch.cat([plane[len(plane) // 2] for plane in planes], 1).numpy()
    low, high = np.percentile(pair, (0.5, 99.5))
    imsave(path, pair.repeat(3, 0).repeat(3, 1), vmin=low, vmax=high, cmap="gray")


def _documentation(model: DenoiseModel) -> str:
    a = model.architecture
    means, deviations = (
        ", ".join(f"{value:.6g}" for value in values) for values in (model.normalisation.mean, model.normalisation.std)
    )
    facts = "\n".join(f"- {key}: {value}" for key, value in sorted(model.facts.items()))
    return f"""# {_name(a)}

A {a.dims}-D U-Net that denoises microscopy images. It was trained with Safelight on noisy images alone (Noise2Void,
N2V2): no clean images were used.

## Use

Give it pixels as they were recorded, in the units of the training images: it subtracts the training data's mean
({means}) and divides by its standard deviation ({deviations}) itself, and returns the same units. Do not normalise
images one by one. Sides are multiples of {a.alignment} pixels; {_halo(a)} pixels along each border see the border.

It suits images of the same kind, recorded with the same microscope and exposure as the training images.

## Validation

Compare with a longer exposure or an average of many frames where there is one. Without, look at what was removed
(input − output): it should hold noise and no structure.

## Training

{facts or "- not recorded"}
"""


@contextmanager
def _quiet_bioimageio() -> Iterator[None]:
    """Keep bioimageio from writing its log to standard error: what matters is in its summary."""
    from loguru import logger

    logger.disable("bioimageio")
    try:
        yield
    finally:
        logger.enable("bioimageio")


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Keep torch's ONNX exporter from saying that torchvision is missing, which nothing here needs."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # torch 2.13's exporter warns of its own use of a deprecated LeafSpec.
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logger.setLevel(level)
