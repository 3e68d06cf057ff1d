"""
### Bring a workload back to its GPUs

From wherever its migration stands. Before the commit users are sent home at once, also while a run moves them; that
run then ends by itself and releases its TPUs. After the commit the GPUs are made whole first: machines where theirs
are gone, the Deployment from the snapshot, every replica seen to answer, and the peak carried within the limits of the
policy `rescue`. Users stay on the TPU meanwhile, and then move; the TPUs are released last. A TPU that serves nobody
any more is waited for by nobody: the first GPU replica that answers gets its users, unproven.

The task `ask` goes on at once, unless the run was started to ask people first, as a canary that failed does.

    airflow dags trigger gpu_fallback --conf '{"project_id": "my-project", "location": "us-central1-a",
        "cluster": "inference", "namespace": "inference", "workload": "vllm-gemma3-27b"}'

At a terminal, without Airflow: `tpu-migration restore WORKLOAD`, or `tpu-migration deploy --accelerator gpu …`.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import DAG, Param

from tpu_migration.operators.ask import AskBackOperator
from tpu_migration.operators.notices import UntoldNotifier
from tpu_migration.operators.stage import StageOperator
from tpu_migration.operators.urgent import urgent

PARAMS = {
    "workload": Param(
        "vllm-gemma3-27b", type="string", minLength=1, maxLength=40, section="What to bring back",
        title="Workload", description="Name of the Deployment that ran vLLM on GPUs",
    ),
    "namespace": Param("inference", type="string", minLength=1, maxLength=63, section="What to bring back",
        title="Namespace", description="Namespace of the workload"),
    "why": Param(None, type=["null", "string"], maxLength=2000, section="What to bring back",
        title="Reason", description="Goes into the record and the log; a canary that failed gives its finding"),
    "ask": Param(False, type="boolean", section="What to bring back",
        title="Ask first", description="Wait for people's word before anything is done; silence is a no"),
    "prove": Param(True, type="boolean", section="What to bring back",
        title="Prove the GPUs first", description="Users leave a TPU that serves only once the GPUs carried the peak "
        "within include/policies/rescue.yaml; a TPU that serves nobody is never waited for"),
    "capacity": Param("on-demand", type="string", enum=["on-demand", "spot", "reservation"], section="GPUs",
        title="Capacity", description="Of machines to make where the source's node pools are gone"),
    "tpu_zone": Param(None, type=["null", "string"], maxLength=63, section="GPUs",
        title="Zone", description="Where to make them; empty: the cluster's zone, or zone -a of its region"),
    "reservation": Param(None, type=["null", "string"], maxLength=63, section="GPUs",
        title="Reservation", description="Its name, when the capacity is a reservation"),
    "project_id": Param("my-project", type="string", minLength=1, section="Cloud", title="Project",
        description="Google Cloud project of the cluster"),
    "location": Param("us-central1-a", type="string", minLength=1, section="Cloud", title="Location",
        description="Region or zone of the cluster"),
    "cluster": Param("inference", type="string", minLength=1, section="Cloud", title="GKE cluster",
        description="Name of the cluster that the workload runs in"),
    "gcp_conn_id": Param("google_cloud_default", type="string", minLength=1, section="Cloud",
        title="Airflow connection", description="Of type google_cloud_platform"),
}  # fmt: skip

with DAG(
    dag_id="gpu_fallback",
    schedule=None,
    catchup=False,
    max_active_runs=256,  # by Airflow's default of 16 the seventeenth workload would wait for another's end
    params=PARAMS,
    doc_md=__doc__,
    tags=["tpu", "vllm", "migration"],
    default_args={"retries": 2, "retry_delay": timedelta(seconds=5), "on_failure_callback": UntoldNotifier()},
    render_template_as_native_obj=True,
) as dag:
    ask = AskBackOperator(task_id="ask", response_timeout=timedelta(days=3), **urgent())
    ask >> StageOperator(task_id="gpu_fallback", **urgent())
