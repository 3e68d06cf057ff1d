"""List what the product reads from its surroundings; `docs/reference/settings.md` is made from it.

The table decides nothing: each value is read where it is used. A test holds the two together.
"""

from __future__ import annotations

from typing import NamedTuple


class Setting(NamedTuple):
    """One environment variable, Airflow variable or Airflow connection: who reads it, and what for."""

    name: str
    reader: str
    default: str
    what: str


ENVIRONMENT = (
    Setting(
        "TPU_MIGRATION_URGENT_QUEUE",
        "DAG processor, scheduler, workers",
        "",
        "queue of the tasks that bring users home; a worker must serve it",
    ),
    Setting(
        "TPU_MIGRATION_WATCH_SCHEDULE",
        "DAG processor",
        "*/5 * * * *",
        "how often `tpu_watch` runs, a cron expression; empty: never by itself",
    ),
    Setting(
        "TPU_MIGRATION_CANARY_SCHEDULE",
        "DAG processor",
        "41 */6 * * *",
        "how often `tpu_canary_revalidation` runs; empty: never by itself",
    ),
    Setting(
        "TPU_MIGRATION_FEATURES_SCHEDULE",
        "DAG processor",
        "17 5 * * *",
        "how often `tpu_feature_watch` runs; empty: never by itself",
    ),
    Setting(
        "NAMESPACE",
        "`status`, `restore`, `approve`",
        "inference",
        "namespace of the workload, where `--namespace` is not given",
    ),
    Setting(
        "USER",
        "`restore`, `approve`",
        "a person",
        "who acted, as the record tells it",
    ),
    Setting(
        "KUBECONFIG",
        "every command that talks to a cluster",
        "~/.kube/config",
        "the cluster; inside a pod its service account is taken instead",
    ),
    Setting(
        "GOOGLE_APPLICATION_CREDENTIALS",
        "`preflight`, `deploy`, `janitor`",
        "",
        "Google's Application Default Credentials, read by Google's own library",
    ),
    Setting(
        "POD_IP",
        "`guard`, `prober`",
        "127.0.0.1",
        "the address that `/metrics` and the prober's counters are served on",
    ),
    Setting(
        "HF_HUB_CACHE",
        "`plan`, preflight",
        "",
        "the Hub's cache, where a model's config.json may lie already",
    ),
    Setting(
        "HF_HOME",
        "`plan`, preflight",
        "",
        "the same, its folder `hub`",
    ),
    Setting(
        "XDG_CACHE_HOME",
        "`plan`, preflight",
        "~/.cache",
        "the same, its folder `huggingface/hub`",
    ),
    Setting(
        "HOME",
        "`plan`, preflight",
        "~",
        "where `.cache` is, without XDG_CACHE_HOME",
    ),
)

VARIABLES = (
    Setting(
        "tpu_migration_fleet",
        "`tpu_watch`, `tpu_canary_revalidation`, `tpu_feature_watch`",
        "",
        "the clusters that are looked after: a JSON list of the entries below",
    ),
    Setting(
        "tpu_migration_matrices",
        "`tpu_feature_watch`",
        "",
        "another place of the support matrices: a JSON object with `source` (address or folder) and "
        "`channel` (`release` or `nightly`)",
    ),
    Setting(
        "tpu_migration_matrices_seen",
        "`tpu_feature_watch`, which writes it",
        "",
        "the matrices as they were seen last; delete it to begin anew",
    ),
)

CONNECTIONS = (
    Setting(
        "google_cloud_default",
        "every DAG; `gcp_conn_id` names another",
        "",
        "type `google_cloud_platform`. Of its extra, beside what the Google provider reads: "
        "`api_endpoint` (`host:port`) sends the calls to the GKE API elsewhere, "
        "`resource_manager_endpoint` those that ask for permissions",
    ),
    Setting(
        "tpu_migration_notices",
        "tasks, triggerer",
        "",
        "type `apprise`: where notices go; without it none are sent",
    ),
)
