"""
### Move a live vLLM workload from GPUs to Cloud TPU

Nobody notices, and there is always a way back.

```
preflight → provision → deploy → warm_up → gate → shift → decommission ─┐
    └──────────── any failure before the commit ────────────────────────┴→ restore
                                             └ approve_shift
                                                     └ approve_decommission
```

| task | what it does | what it touches |
|---|---|---|
| `preflight` | checks the plan against the live cluster, takes the snapshot | writes the record and the snapshot |
| `provision` | creates the TPU node pool | GKE |
| `deploy` | translates the live Deployment to vLLM-TPU and applies it | objects of its own |
| `warm_up` | waits for the compile, drives every shape until nothing compiles and two passes agree | the TPU pods |
| `gate` | measures both arms, judges; only *pass* goes on | load through the Gateway |
| `shift` | moves users step by step, verified by observed traffic; soaks; commits | the HTTPRoute |
| `approve_shift` | asks people, if the plan says so; `shift` waits for their answer | the record |
| `approve_decommission` | the same before GPUs are given up, unless the plan says otherwise | the record |
| `decommission` | drains the GPUs and gives them back as the plan says | the source |
| `restore` | does nothing when the migration stands, else sends users home and releases the TPU | the way back |

**To undo at any time**: mark the run as failed here, or `tpu-migration restore WORKLOAD` at a
terminal. With Airflow dead the guard in the cluster does it within a minute.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG, Param, chain

from tpu_migration.domain.plan import APPROVALS
from tpu_migration.operators.ask import AskOperator
from tpu_migration.operators.notices import UntoldNotifier
from tpu_migration.operators.stage import StageOperator
from tpu_migration.operators.urgent import urgent

STAGES = ("preflight", "provision", "deploy", "warm_up", "gate", "shift", "decommission")

PARAMS = {
    "workload": Param(
        "vllm-gemma3-27b", type="string", minLength=1, maxLength=40, section="What to migrate",
        title="Workload", description="Name of the Deployment that runs vLLM on GPUs today",
    ),
    "namespace": Param("inference", type="string", minLength=1, maxLength=63, section="What to migrate",
        title="Namespace", description="Namespace of the workload"),
    "route": Param(None, type=["null", "string"], maxLength=63, section="What to migrate",
        title="HTTPRoute", description="The route whose weights move users; empty: the one pointing at the workload"),
    "route_owner_consents": Param(False, type="boolean", section="What to migrate",
        title="The route's owner lets weights be",
        description="Argo CD or Flux owns the HTTPRoute, and was told to leave its backendRefs alone"),
    "peak_rps": Param(0, type="number", minimum=0, maximum=10000, section="What to migrate",
        title="Live peak (requests/s)", description="Highest rate of the last weeks; 0: read it from Prometheus"),
    "prometheus_url": Param(None, type=["null", "string"], maxLength=500, pattern="^[^@?#]*$",
        section="What to migrate", title="Prometheus",
        description="Where to read the peak from; gmp: Google's managed one of the project"),
    "source_peak_replicas": Param(0, type="integer", minimum=0, maximum=256, section="What to migrate",
        title="GPU replicas at the peak",
        description="Held while users move, so that all can come back; 0: as many as run now"),
    "prompt_tokens": Param(512, type="integer", minimum=1, maximum=131072, section="What to migrate",
        title="Prompt length (tokens)", description="Usual length of a prompt, for the benchmark's load"),
    "output_tokens": Param(256, type="integer", minimum=2, maximum=131072, section="What to migrate",
        title="Answer length (tokens)", description="Usual length of an answer, for the benchmark's load"),
    "target": Param("tpu-v5e-8", type="string",
        enum=["tpu-v5e-8", "tpu-v5e-4", "tpu-v5e-1", "tpu-v6e-8", "tpu-v6e-4", "tpu-v6e-1"],
        section="Where to", title="TPU slice", description="One host a replica; v5e-8 fits a 27B model in BF16"),
    "target_replicas": Param(2, type="integer", minimum=1, maximum=64, section="Where to",
        title="Replicas", description="TPU replicas, each on a node of its own"),
    "accept_single_replica": Param(False, type="boolean", section="Where to",
        title="One replica is enough", description="Accept that a restart of the only replica takes tens of minutes"),
    "capacity": Param("on-demand", type="string", enum=["on-demand", "spot", "reservation"], section="Where to",
        title="Capacity", description="Spot nodes can vanish with 30 s notice"),
    "tpu_zone": Param(None, type=["null", "string"], maxLength=63, section="Where to",
        title="TPU zone", description="Empty: the cluster's zone, or zone -a of its region"),
    "reservation": Param(None, type=["null", "string"], maxLength=63, section="Where to",
        title="Reservation", description="Its name, when the capacity is a reservation"),
    "capacity_plan": Param([], type="array", items={"type": "string", "maxLength": 160}, section="Where to",
        title="Capacity plan", description="In place of the fields above, to be tried in order: KIND@ZONE[=SECONDS], "
        "KIND is on-demand, spot or reservation:NAME"),
    "capacity_budget_s": Param(3600, type="number", minimum=60, maximum=604800, section="Where to",
        title="Time for all attempts (s)", description="How long TPUs are waited for in all, before it is given up"),
    "tpu_pool": Param(None, type=["null", "string"], maxLength=40, section="Where to",
        title="Existing node pool", description="To be used as it is, and never deleted; empty: the run makes one"),
    "target_max_nodes": Param(0, type="integer", minimum=0, maximum=256, section="Where to",
        title="Largest pool", description="Upper bound of the TPU pool's autoscaler; 0: none, a node a replica"),
    "node_service_account": Param(None, type=["null", "string"], maxLength=120, section="Where to",
        title="Service account of the nodes", description="Empty: the project's default one of Compute Engine"),
    "tpu_image": Param("vllm/vllm-tpu:v0.32.0", type="string", minLength=1, section="Where to",
        title="vLLM-TPU image", description="vLLM, tpu-inference, JAX and libtpu are pinned together: never mix"),
    "policy": Param("chat", type="string", enum=["chat", "interactive", "batch", "demo"], section="How carefully",
        title="Gate policy", description="Limits of the benchmark gate (include/policies)"),
    "client_features": Param([], type="array", section="How carefully",
        items={"type": "string", "enum": ["seed", "min_p", "logit_bias", "allowed_token_ids", "structured_outputs",
                                          "json_schema", "tools"]},
        title="What clients rely on", description="Fields of requests; the gate fails if the TPU loses one of them"),
    "quality_tasks": Param(None, type=["null", "string"], maxLength=63, section="How carefully",
        title="Tasks", description="A ConfigMap with tasks.jsonl: prompts with expected answers, asked on both arms"),
    "steps": Param([1, 5, 25, 50, 100], type="array", items={"type": "integer", "minimum": 1, "maximum": 100},
        section="How carefully", title="Steps (%)", description="Share of users on the TPU, step by step, up to 100"),
    "bake_s": Param(300, type="number", minimum=1, maximum=86400, section="How carefully",
        title="Bake time (s)", description="How long each step is watched before the next"),
    "soak_s": Param(86400, type="number", minimum=1, maximum=1209600, section="How carefully",
        title="Soak (s)", description="How long all users are on the TPU before the commit; it should see the peak"),
    "stop_after": Param("none", type="string", enum=["none", "gate"], section="How carefully",
        title="Stop after", description="`gate`: a proof of concept that measures and touches no traffic"),
    "approvals": Param(["decommission"], type="array", items={"type": "string", "enum": ["shift", "decommission"]},
        section="How carefully", title="Approvals", description="What waits for people's word: before users move "
        "(shift), before GPUs are given up (decommission). Answered here, or by `tpu-migration approve`"),
    "approval_timeout_s": Param(259200, type="number", minimum=60, maximum=1209600, section="How carefully",
        title="Time for an answer (s)", description="Silence for so long is a no"),
    "source_release": Param("keep", type="string", enum=["keep", "scale-to-zero", "delete-pool"],
        section="Afterwards", title="The GPUs",
        description="What becomes of the GPUs after the commit. Released H100s may not come back"),
    "on_fallback": Param("release", type="string", enum=["release", "keep"], section="Afterwards",
        title="The TPUs after a fall-back", description="`keep`: for a diagnosis; they cost money until you end them"),
    "project_id": Param("my-project", type="string", minLength=1, section="Cloud", title="Project",
        description="Google Cloud project of the cluster"),
    "location": Param("us-central1-a", type="string", minLength=1, section="Cloud", title="Location",
        description="Region or zone of the cluster"),
    "cluster": Param("inference", type="string", minLength=1, section="Cloud", title="GKE cluster",
        description="Name of the cluster that the workload runs in"),
    "gcp_conn_id": Param("google_cloud_default", type="string", minLength=1, section="Cloud",
        title="Airflow connection", description="Of type google_cloud_platform"),
    "toolbox_image": Param("tpu-migration-toolbox:0.1.0", type="string", minLength=1, section="Cloud",
        title="Toolbox image", description="Runs the benchmark, the prober and the guard inside the cluster"),
}  # fmt: skip

with DAG(
    dag_id="tpu_migration",
    schedule=None,
    catchup=False,
    max_active_runs=256,  # by Airflow's default of 16 the seventeenth workload would wait for another's end
    params=PARAMS,
    doc_md=__doc__,
    tags=["tpu", "vllm", "migration"],
    # No dagrun_timeout: it would skip the teardown too. Each stage has a timeout of its own.
    default_args={"retries": 2, "retry_delay": timedelta(seconds=5), "on_failure_callback": UntoldNotifier()},
    render_template_as_native_obj=True,
) as dag:
    # The scheduler itself completes an empty task, so the teardown is armed without any worker.
    arm = EmptyOperator(task_id="arm").as_setup()
    stages = [StageOperator(task_id=stage) for stage in STAGES]
    restore = StageOperator(task_id="restore", **urgent()).as_teardown(setups=arm, on_failure_fail_dagrun=True)
    chain(arm, *stages, restore)
    # Beside the stages, never before one: the stage keeps watch while people think, and believes the record alone.
    for stage in stages:
        if stage.task_id in APPROVALS:
            AskOperator(task_id=f"approve_{stage.task_id}", what=stage.task_id).set_upstream(stage.upstream_list[0])
