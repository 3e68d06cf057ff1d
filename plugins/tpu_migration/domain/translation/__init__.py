"""Translate vLLM on GPUs to vLLM on TPU: Kubernetes objects in, objects and reasons out; pure."""

from tpu_migration.domain.translation.documents import load, translate_documents
from tpu_migration.domain.translation.labels import TARGET_LABEL
from tpu_migration.domain.translation.model import (
    Change,
    Finding,
    InputError,
    Manifest,
    Names,
    Sizing,
    Source,
    Translation,
)
from tpu_migration.domain.translation.translate import translate
from tpu_migration.domain.translation.workload import (
    command_line,
    config_maps,
    describe_source,
    find_vllm_workload,
    is_tpu,
    served_model_names,
)
from tpu_migration.domain.translation.yamltext import dump

__all__ = [
    "TARGET_LABEL",
    "Change",
    "Finding",
    "InputError",
    "Manifest",
    "Names",
    "Sizing",
    "Source",
    "Translation",
    "command_line",
    "config_maps",
    "describe_source",
    "dump",
    "find_vllm_workload",
    "is_tpu",
    "load",
    "served_model_names",
    "translate",
    "translate_documents",
]
