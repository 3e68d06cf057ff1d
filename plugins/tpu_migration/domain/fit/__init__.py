"""Size a model on accelerators: parameters, weights, KV cache, head-room, and whether it fits; pure."""

from tpu_migration.domain.fit.catalog import Catalog, KnownModel, parse_catalog, stored_as
from tpu_migration.domain.fit.memory import GIB, Place, Serving, legal_degrees, tensor_parallel_problem
from tpu_migration.domain.fit.shape import ModelConfigError, Quantization, Shape, Vision, parse_shape
from tpu_migration.domain.fit.verdict import (
    DOES_NOT_FIT,
    FITS,
    TIGHT,
    Fit,
    fit,
    fit_all,
    place_of_gpus,
    place_of_slice,
    smallest,
)

__all__ = [
    "DOES_NOT_FIT",
    "FITS",
    "GIB",
    "TIGHT",
    "Catalog",
    "Fit",
    "KnownModel",
    "ModelConfigError",
    "Place",
    "Quantization",
    "Serving",
    "Shape",
    "Vision",
    "fit",
    "fit_all",
    "legal_degrees",
    "parse_catalog",
    "parse_shape",
    "place_of_gpus",
    "place_of_slice",
    "smallest",
    "stored_as",
    "tensor_parallel_problem",
]
