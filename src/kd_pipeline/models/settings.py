"""Settings of models: architectures, pretrained weights, and given teachers."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from kd_pipeline.config import ImageSide, Params, PositiveFloat, PositiveInt


class Model(Params):
    """An architecture by name, with its own arguments."""

    name: str
    arguments: dict[str, Any] = Field(default_factory=dict)
    input_size: ImageSide | None = None
    """Side in pixels of the square that views are resized to; null keeps the images' size."""


class Pretrained(Params):
    """Weights to start from: a torchvision enum name or a local file; exactly one."""

    weights: str | None = None
    file: str | None = None
    trainable_layers: PositiveInt | None = None
    """Number of last layers with weights that are fine-tuned; null is all."""

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if (self.weights is None) == (self.file is None):
            raise ValueError("give exactly one of `weights` and `file`")
        return self


class GivenPreprocessing(Params):
    """How a network's input is normalised; pixels are in [0, 1] before."""

    mean: Annotated[tuple[float, ...], Field(min_length=1)]
    """Per channel; a mean of 0 and a std of 1 leave the pixels as they are."""
    std: tuple[PositiveFloat, ...]
    input_size: ImageSide | None = None
    """Side of the square, in pixels; null is the file's fixed size, or else the images' size."""

    @model_validator(mode="after")
    def _as_many_as_channels(self) -> Self:
        if len(self.mean) != len(self.std):
            raise ValueError(f"give `std` for {len(self.mean)} channels, got {self.std}")
        return self


class NamedOutputs(Params):
    """A teacher whose file may not name the classes of its outputs."""

    class_names: tuple[str, ...] | Literal["images"] | None = None
    """In the order of the outputs; `images` is the images' order, unchecked."""
    class_names_file: str | None = None
    """A text file with one name per line, instead."""

    @model_validator(mode="after")
    def _named_once(self) -> Self:
        if self.class_names is not None and self.class_names_file is not None:
            raise ValueError("give at most one of `class_names` and `class_names_file`")
        return self


class _Weights(NamedOutputs):
    """An architecture of a library with weights by name or from a file; exactly one."""

    name: str
    weights: bool | str | None = None
    file: str | None = None
    """`.safetensors`, or a `.pth` state dict, which is read without running code."""
    arguments: dict[str, Any] = Field(default_factory=dict)
    preprocessing: Literal["declared"] | GivenPreprocessing | None = None
    """`declared` is that of the weights, or for a file of the architecture's default weights."""

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if (self.weights in (None, False)) == (self.file is None):
            raise ValueError("give exactly one of `weights` and `file`")
        if self.file is not None and self.preprocessing is None:
            raise ValueError(
                "`preprocessing` must be `declared` or {mean, std, input_size} with a `file`, "
                "which does not hold how its images were normalised"
            )
        return self


class GivenCheckpoint(Params):
    """A checkpoint of this project."""

    kind: Literal["checkpoint"]
    folder: str


class GivenTorchvision(_Weights):
    """A model of torchvision's; `weights` as in its enums, for instance IMAGENET1K_V2."""

    kind: Literal["torchvision"]
    weights: str | None = None


class GivenTimm(_Weights):
    """A model of timm's, an optional extra; `weights` is true or a tag such as a1_in1k."""

    kind: Literal["timm"]


class GivenModule(NamedOutputs):
    """A user's own `nn.Module`, made by `package.module:Class`, with a state dict.

    The import path is code that the user names: importing the module runs it, and only then is
    the class checked to be an `nn.Module`.
    """

    kind: Literal["module"]
    import_path: Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]
    file: str
    arguments: dict[str, Any] = Field(default_factory=dict)
    preprocessing: GivenPreprocessing


class GivenOnnx(NamedOutputs):
    """An ONNX file, run by onnxruntime, an optional extra."""

    kind: Literal["onnx"]
    file: str
    preprocessing: GivenPreprocessing | None = None
    """Required unless the graph takes uint8 pixels, which it normalises itself."""


class GivenMlflow(NamedOutputs):
    """A model in MLflow: models:/name/version, models:/name@alias, models:/m-id, runs:/id/path."""

    kind: Literal["mlflow"]
    uri: Annotated[str, Field(pattern=r"^(models|runs):/.+")]
    preprocessing: GivenPreprocessing | None = None
    """Required for an ONNX model unless it takes uint8 pixels; refused for this project's own."""


class GivenLogits(NamedOutputs):
    """Logits computed elsewhere, with the ids of their examples: `.parquet` or `.npz`."""

    kind: Literal["logits"]
    file: Annotated[str, Field(pattern=r"\.(parquet|npz)$")]


Given = Annotated[
    GivenCheckpoint
    | GivenTorchvision
    | GivenTimm
    | GivenModule
    | GivenOnnx
    | GivenMlflow
    | GivenLogits,
    Field(discriminator="kind"),
]
