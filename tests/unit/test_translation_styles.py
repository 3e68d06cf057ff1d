"""Manifests of many authors: each style must keep what it says, but for the GPU."""

from __future__ import annotations

import copy
import json

import pytest

from tests.unit.translation_builders import (
    config_map,
    deployment,
    env_of,
    line_of,
    only,
    pod_of,
    run,
    server_of,
    service,
)
from tpu_migration.domain.translation import InputError, Sizing, describe_source, served_model_names
from tpu_migration.domain.translation.labels import selects

MODEL = "Qwen/Qwen3-32B"
SERVE = ["vllm", "serve"]


@pytest.mark.parametrize(
    ("command", "args"),
    [
        (None, [MODEL, "--port=9000", "--max-model-len=4096"]),
        (None, ["--model", MODEL, "--port", "9000", "--max-model-len", "4096"]),
        (None, ["serve", MODEL, "--port=9000", "--max_model_len=4096"]),
        (None, ["vllm", "serve", MODEL, "--port=9000", "--max-model-len=4k"]),
        (["vllm", "serve", MODEL, "--port=9000", "--max-model-len=4096"], None),
        (["/usr/local/bin/vllm", "serve"], [MODEL, "--port", "9000", "--max-model-len=4096"]),
        (["python3", "-m", "vllm.entrypoints.openai.api_server"], ["--model=" + MODEL, "--port=9000"]),
        (["/bin/sh", "-c"], [f"vllm serve {MODEL} --port 9000"]),
        (["/bin/bash", "-exc", f"exec vllm serve {MODEL} \\\n  --port 9000 \\\n  --enforce-eager\n"], None),
        (
            ["bash"],
            ["-euo", "pipefail", "-c", f"python3 -m vllm.entrypoints.openai.api_server --model '{MODEL}' --port=9000"],
        ),
        (["bash", "-c", 'ulimit -l unlimited; exec "$@"', "--", "vllm", "serve", MODEL, "--port=9000"], None),
        (["sh", "-c", 'vllm serve "$@"', "--", MODEL, "--port", "9000"], None),
        (["tini", "--", "vllm", "serve", MODEL, "--port", "9000"], None),
        (["sh", "-c", f"M={MODEL}; vllm serve $M --port ${{PORT:-9000}} 2>&1 | tee /tmp/log"], None),
    ],
)
def test_every_way_to_start_vllm_is_understood_and_rewritten(command, args):
    source = deployment(args, command)
    described = describe_source(source)
    assert (described.model, described.port, described.served_names) == (MODEL, 9000, (MODEL,))
    result = run(source)
    assert result.blockers == []
    line = line_of(result)
    assert server_of(result)["command"], "the TPU image has no program of its own"
    assert line.model()[1] == MODEL
    assert line.integer("tensor-parallel-size") == 8
    assert line.served_names() == [MODEL]
    assert line.get("enforce-eager") is None
    assert only(result, "HealthCheckPolicy")["spec"]["default"]["config"]["httpHealthCheck"]["port"] == 9000


def test_a_multi_line_script_keeps_its_lines():
    script = (
        "set -e\n# start\nexport NCCL_DEBUG=INFO\nnvidia-smi && echo ok\n"
        f"CUDA_VISIBLE_DEVICES=0 exec vllm serve {MODEL} \\\n"
        '  --speculative-config \'{"method": "ngram"}\' \\\n'
        "  --tensor-parallel-size 2 \\\n"
        "  --max-model-len 8192 \\\n"
        "  --chat-template '{{ messages }}' > /tmp/out 2>&1\n"
    )
    result = run(deployment(command=["bash", "-c", script]))
    text = server_of(result)["command"][2]
    assert text.startswith("set -e\n# start\ntrue\ntrue && echo ok\n")
    assert f"\nexec vllm serve {MODEL} \\\n  --tensor-parallel-size 8 \\\n  --max-model-len 8192 \\\n" in text
    assert "--chat-template '{{ messages }}' --dtype bfloat16" in text
    assert text.endswith(" > /tmp/out 2>&1\n")
    assert "ngram" not in text


def test_short_tokens_of_a_list_are_understood():
    source = deployment(
        [MODEL, "-tp", "2", "-q", "fp8", "-O3", "-dp=2", "--seed", "-1", "--stream-interval", "4"], SERVE
    )
    result = run(source)
    args = server_of(result)["args"]
    assert args[:5] == [MODEL, "-tp", "8", "--seed", "-1"]
    assert "-O3" not in args
    assert "fp8" not in args
    assert args[args.index("--stream-interval") + 1] == "4"


def test_a_switch_does_not_swallow_the_model():
    result = run(deployment(["--enable-prefix-caching", MODEL, "--enable-chunked-prefill", "False"], SERVE))
    assert line_of(result).model()[1] == MODEL
    assert "--no-enable-chunked-prefill" in server_of(result)["args"]
    assert "False" not in server_of(result)["args"]


def test_without_chunked_prefill_a_whole_prompt_must_fit_into_a_step():
    result = run(deployment([MODEL, "--no-enable-chunked-prefill", "--max-model-len=16384"], SERVE))
    assert line_of(result).integer("max-num-batched-tokens") == 16384


def test_dotted_and_underscored_flags_are_gone_with_their_values():
    args = [
        MODEL,
        "--speculative_config.method",
        "ngram",
        "--speculative-config.num_speculative_tokens=3",
        "--swap_space",
        "4",
    ]
    result = run(deployment(args, SERVE))
    assert line_of(result).positionals[0].text == MODEL
    assert len(line_of(result).positionals) == 1
    assert not [token for token in server_of(result)["args"] if "spec" in token or "swap" in token]


def test_obsolete_flags_get_their_new_names():
    args = [
        MODEL,
        "--disable-log-requests",
        "--guided-decoding-backend",
        "xgrammar:disable-any-whitespace",
        "--host",
        "0.0.0.0",
    ]
    result = run(deployment(args, SERVE))
    args = server_of(result)["args"]
    assert "--no-enable-log-requests" in args
    line = line_of(result)
    assert json.loads(line.value("structured-outputs-config") or "") == {
        "backend": "xgrammar",
        "disable_any_whitespace": True,
    }
    assert line.value("host") == "0.0.0.0"


@pytest.mark.parametrize(
    ("given", "served"),
    [
        (["RedHatAI/Meta-Llama-3.1-8B-Instruct-FP8-dynamic"], "meta-llama/Llama-3.1-8B-Instruct"),
        (["Qwen/Qwen3-32B-FP8"], "Qwen/Qwen3-32B"),
        (["nvidia/Llama-3.3-70B-Instruct-FP8"], "meta-llama/Llama-3.3-70B-Instruct"),
        (["RedHatAI/gemma-3-27b-it-FP8-dynamic"], "google/gemma-3-27b-it"),
        (["mistralai/Ministral-3-14B-Instruct-2512"], "mistralai/Ministral-3-14B-Instruct-2512-BF16"),
    ],
)
def test_an_fp8_checkpoint_becomes_its_bf16_one_under_the_old_name(given, served):
    result = run(deployment([*given, "--revision=abc"], SERVE), target="tpu-v6e-8")
    assert result.blockers == []
    assert line_of(result).model()[1] == served
    assert line_of(result).served_names() == given
    assert line_of(result).get("revision") is None


@pytest.mark.parametrize("model", ["deepseek-ai/DeepSeek-V3", "/models/mine-fp8", "acme/secret-model-FP8"])
def test_an_fp8_checkpoint_without_a_known_bf16_one_blocks_until_somebody_names_it(model):
    assert "FP8" in run(deployment([model], SERVE)).blockers[0].message
    result = run(deployment([model], SERVE), sizing=Sizing(model="acme/bf16"))
    assert result.blockers == []
    assert line_of(result).model()[1] == "acme/bf16"
    assert line_of(result).served_names() == [model]


@pytest.mark.parametrize(
    ("method", "blocked", "left"),
    [
        ("fp8", False, None),
        ("awq", False, "auto_awq"),
        ("compressed-tensors", False, "compressed-tensors"),
        ("gptq_marlin", True, None),
        ("bitsandbytes", True, None),
    ],
)
def test_quantization_is_kept_removed_or_blocks(method, blocked, left):
    result = run(deployment([MODEL, "--quantization", method], SERVE))
    assert bool(result.blockers) is blocked
    assert line_of(result).value("quantization") == left


def test_all_served_names_survive():
    args = [MODEL, "--served-model-name", "chat", "chat-large", "--port", "8000"]
    source = deployment(args, SERVE)
    assert served_model_names(source, {}) == ["chat", "chat-large"]
    assert line_of(run(source)).served_names() == ["chat", "chat-large"]


def test_a_configmap_behind_the_arguments_is_patched_in_a_copy():
    runtime = config_map("runtime", MODEL_ID=f"{MODEL}-FP8", TP="1", LEN="131072", NCCL_DEBUG="INFO", OTHER="x")
    args = [
        "--model=$(MODEL_ID)",
        "--tensor-parallel-size=$(TP)",
        "--max-model-len=$(LEN)",
        "--served-model-name=$(MODEL_ID)",
    ]
    source = deployment(args, SERVE, container={"envFrom": [{"configMapRef": {"name": "runtime"}}]})
    before = copy.deepcopy([source, runtime])
    result = run(source, runtime)
    assert [source, runtime] == before
    assert result.blockers == []
    copied = only(result, "ConfigMap")
    assert copied["metadata"]["name"] == "runtime-tpu"
    assert copied["data"] == {"MODEL_ID": MODEL, "TP": "8", "LEN": "131072", "OTHER": "x"}
    server = server_of(result)
    assert server["envFrom"] == [{"configMapRef": {"name": "runtime-tpu"}}]
    assert server["args"][:4] == [
        "--model=$(MODEL_ID)",
        "--tensor-parallel-size=$(TP)",
        "--max-model-len=$(LEN)",
        f"--served-model-name={MODEL}-FP8",
    ]


def test_a_configmap_given_apart_is_as_good_as_one_in_the_file():
    env = [{"name": "M", "valueFrom": {"configMapKeyRef": {"name": "runtime", "key": "model"}}}]
    source = deployment(["--model=/gcs/$(M)"], SERVE, env=env)
    config = {"runtime": config_map("runtime", model="Qwen/Qwen3-32B-FP8")}
    assert served_model_names(source, config) == ["/gcs/Qwen/Qwen3-32B-FP8"]
    result = run(source, config=config)
    assert only(result, "ConfigMap")["data"] == {"model": MODEL}
    assert line_of(result).model()[1] == f"/gcs/{MODEL}"
    assert line_of(result).served_names() == ["/gcs/Qwen/Qwen3-32B-FP8"]


def test_a_model_out_of_sight_blocks():
    env = [{"name": "M", "valueFrom": {"secretKeyRef": {"name": "s", "key": "m"}}}]
    source = deployment(["--model=$(M)"], SERVE, env=env)
    assert run(source).blockers
    with pytest.raises(InputError, match="out of sight"):
        served_model_names(source, {})


def test_options_in_a_variable_are_translated_too():
    env = [{"name": "EXTRA", "value": "--quantization fp8 --max-model-len 2048 --kv-cache-dtype fp8_e5m2"}]
    result = run(deployment(command=["sh", "-c", f"vllm serve {MODEL} $EXTRA"], env=env))
    line = line_of(result)
    assert line.get("quantization") is None
    assert line.value("kv-cache-dtype") == "auto"
    assert line.integer("max-model-len") == 2048
    assert line.integer("tensor-parallel-size") == 8


def test_a_start_script_in_a_configmap_is_translated_in_a_copy():
    scripts = config_map(
        "scripts", **{"start.sh": f"#!/bin/sh\nexec vllm serve {MODEL} --speculative-model x/y --port 8001\n"}
    )
    pod = {"volumes": [{"name": "scripts", "configMap": {"name": "scripts"}}]}
    container = {"volumeMounts": [{"name": "scripts", "mountPath": "/scripts"}]}
    result = run(deployment(command=["/bin/bash", "/scripts/start.sh"], pod=pod, container=container), scripts)
    assert result.blockers == []
    text = only(result, "ConfigMap")["data"]["start.sh"]
    assert text.startswith(f"#!/bin/sh\nexec vllm serve {MODEL} --port 8001 --tensor-parallel-size 8")
    volume = next(v for v in pod_of(result)["volumes"] if v["name"] == "scripts")
    assert volume["configMap"]["name"] == "scripts-tpu"


def test_a_configuration_file_is_translated_in_a_copy():
    data = {"vllm.yaml": f"model: {MODEL}\nquantization: fp8\ntensor-parallel-size: 2\nenforce-eager: true\n"}
    pod = {"volumes": [{"name": "conf", "configMap": {"name": "conf"}}]}
    container = {"volumeMounts": [{"name": "conf", "mountPath": "/etc/vllm"}]}
    source = deployment(["--config", "/etc/vllm/vllm.yaml"], SERVE, pod=pod, container=container)
    result = run(source, config_map("conf", **data))
    assert result.blockers == []
    line = line_of(result)
    assert (line.model()[1], line.integer("tensor-parallel-size"), line.get("quantization")) == (MODEL, 8, None)
    assert only(result, "ConfigMap")["data"]["vllm.yaml"] == f"model: {MODEL}\ntensor-parallel-size: 8\n"


def test_a_configuration_file_out_of_sight_blocks():
    result = run(deployment([MODEL, "--config", "/etc/vllm.yaml"], SERVE))
    assert any("out of sight" in finding.message for finding in result.blockers)


def test_gpu_side_cars_their_volumes_and_annotations_go_and_others_stay():
    pod = {
        "initContainers": [
            {
                "name": "nccl-plugin-installer",
                "image": "us-docker.pkg.dev/gce-ai-infra/gpudirect-tcpxo/nccl-plugin:v1",
                "volumeMounts": [{"name": "nvidia-install-dir-host", "mountPath": "/usr/local/nvidia"}],
            },
            {"name": "fetch", "image": "busybox", "volumeMounts": [{"name": "models", "mountPath": "/models"}]},
        ],
        "containers": [
            {
                "name": "tcpxo-daemon",
                "image": "x/tcpgpudmarxd-dev:v1",
                "volumeMounts": [{"name": "sys", "mountPath": "/hostsysfs"}],
            },
            {"name": "log-shipper", "image": "fluent-bit:3"},
        ],
        "volumes": [
            {"name": "nvidia-install-dir-host", "hostPath": {"path": "/home/kubernetes/bin/nvidia"}},
            {"name": "sys", "hostPath": {"path": "/sys"}},
            {"name": "models", "emptyDir": {}},
            {"name": "shm", "emptyDir": {"medium": "Memory"}},
        ],
        "runtimeClassName": "nvidia",
    }
    container = {"volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}, {"name": "models", "mountPath": "/models"}]}
    source = deployment([MODEL], SERVE, pod=pod, container=container)
    source["spec"]["template"]["metadata"]["annotations"] = {
        "devices.gke.io/container.tcpxo-daemon": "- path: /dev/nvidia0"
    }
    result = run(source)
    spec = pod_of(result)
    assert [c["name"] for c in spec["initContainers"]] == ["fetch"]
    assert [c["name"] for c in spec["containers"]] == ["vllm", "log-shipper"]
    assert {v["name"] for v in spec["volumes"]} == {"models", "shm", "xla-cache"}
    assert "runtimeClassName" not in spec
    assert "nvidia" not in json.dumps(result.manifests)
    assert all("google.com/tpu" not in str(c) for c in spec["containers"][1:])


def test_a_second_gpu_program_in_the_pod_blocks():
    other = {"name": "embed", "image": "tei:1", "resources": {"limits": {"nvidia.com/gpu": 1}}}
    assert run(deployment([MODEL], SERVE, pod={"containers": [other]})).blockers


def test_scheduling_moves_from_gpu_nodes_to_the_slice_and_keeps_the_rest():
    term = {
        "matchExpressions": [
            {"key": "cloud.google.com/gke-accelerator", "operator": "In", "values": ["nvidia-l4"]},
            {"key": "team", "operator": "In", "values": ["chat"]},
        ]
    }
    pod = {
        "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}},
        "nodeSelector": {"cloud.google.com/compute-class": "gpu-h100", "disk": "fast"},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}, {"key": "team", "operator": "Exists"}],
    }
    spec = pod_of(run(deployment([MODEL], SERVE, pod=pod), target="tpu-v6e-4"))
    assert spec["nodeSelector"] == {
        "disk": "fast",
        "cloud.google.com/gke-tpu-accelerator": "tpu-v6e-slice",
        "cloud.google.com/gke-tpu-topology": "2x2",
    }
    assert [t["key"] for t in spec["tolerations"]] == ["team", "google.com/tpu"]
    kept = spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert [e["key"] for e in kept[0]["matchExpressions"]] == ["team"]


def test_the_services_never_cross_even_by_an_odd_selector():
    labels = {"app": "chat", "team": "llm", "tier": "front"}
    odd = service("by-team", {"team": "llm"})
    taken = service("other", {"app": "chat-tpu"})
    source = deployment([MODEL], SERVE, labels=labels)
    source["spec"]["selector"] = {"matchLabels": {"app": "chat"}}
    result = run(source, service("chat"), odd, taken)
    pods = only(result, "Deployment")["spec"]["template"]["metadata"]["labels"]
    for each in (service("chat"), odd, taken):
        assert not selects({"matchLabels": each["spec"]["selector"]}, pods)
    own = {"matchLabels": only(result, "Service")["spec"]["selector"]}
    assert selects(own, pods)
    assert not selects(own, labels)
    assert pods["tier"] == "front"


def test_policies_keep_the_sources_settings_and_point_at_the_target():
    ref = {"group": "", "kind": "Service", "name": "chat"}
    policy = {
        "apiVersion": "networking.gke.io/v1",
        "kind": "GCPBackendPolicy",
        "metadata": {"name": "chat", "namespace": "llm"},
        "spec": {
            "default": {"timeoutSec": 1200, "securityPolicy": "armor", "logging": {"enabled": True}},
            "targetRef": ref,
        },
    }
    check = {
        "apiVersion": "networking.gke.io/v1",
        "kind": "HealthCheckPolicy",
        "metadata": {"name": "chat", "namespace": "llm"},
        "spec": {"default": {"checkIntervalSec": 7, "config": {"type": "TCP", "tcpHealthCheck": {}}}, "targetRef": ref},
    }
    result = run(deployment([MODEL], SERVE), service(), policy, check)
    default = only(result, "GCPBackendPolicy")["spec"]["default"]
    assert (default["timeoutSec"], default["securityPolicy"], default["logging"]) == (1200, "armor", {"enabled": True})
    assert default["connectionDraining"]["drainingTimeoutSec"] >= 300
    health = only(result, "HealthCheckPolicy")["spec"]
    assert health["default"]["checkIntervalSec"] == 7
    assert health["default"]["config"]["httpHealthCheck"]["requestPath"] == "/health"
    assert health["targetRef"]["name"] == "chat-tpu"


def test_a_live_deployment_leaves_what_the_server_wrote_behind():
    source = deployment([MODEL], SERVE)
    source["metadata"] |= {
        "uid": "1",
        "resourceVersion": "2",
        "generation": 3,
        "creationTimestamp": "now",
        "managedFields": [{}],
        "annotations": {"deployment.kubernetes.io/revision": "4"},
    }
    source["metadata"]["labels"]["app.kubernetes.io/managed-by"] = "Helm"
    source["status"] = {"replicas": 2}
    source["spec"]["template"]["metadata"]["labels"]["pod-template-hash"] = "abc"
    source["spec"]["template"]["metadata"]["creationTimestamp"] = None
    live = service(clusterIP="10.0.0.1", clusterIPs=["10.0.0.1"], type="LoadBalancer", externalTrafficPolicy="Cluster")
    live["spec"]["ports"][0]["nodePort"] = 30000
    result = run(source, live)
    moved = only(result, "Deployment")
    assert set(moved["metadata"]) == {"name", "namespace", "labels"}
    assert "status" not in moved
    assert not {"pod-template-hash", "app.kubernetes.io/managed-by"} & set(
        moved["spec"]["template"]["metadata"]["labels"]
    )
    assert set(only(result, "Service")["spec"]) == {"selector", "ports", "type"}
    assert only(result, "Service")["spec"]["ports"] == [{"port": 80, "targetPort": 8000}]


def test_the_grace_period_outlasts_pre_stop_and_drain():
    lifecycle = {"preStop": {"exec": {"command": ["sh", "-c", "sleep 90"]}}}
    source = deployment([MODEL, "--shutdown-timeout", "700"], SERVE, container={"lifecycle": lifecycle})
    result = run(source)
    assert server_of(result)["lifecycle"] == lifecycle
    assert pod_of(result)["terminationGracePeriodSeconds"] > 90 + 700
    assert only(result, "GCPBackendPolicy")["spec"]["default"]["connectionDraining"]["drainingTimeoutSec"] == 700


def test_a_cold_compile_of_an_hour_is_no_failed_start():
    probe = server_of(run(deployment([MODEL], SERVE)))["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] >= 3600
    assert probe["httpGet"]["path"] == "/health"


def test_the_rollout_never_needs_a_spare_slice():
    spec = only(run(deployment([MODEL], SERVE), replicas=3), "Deployment")["spec"]
    assert spec["replicas"] == 3
    assert spec["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}
    assert spec["progressDeadlineSeconds"] > 3600


def test_gpu_variables_go_and_the_tpus_own_are_set():
    env = [
        {"name": name, "value": "1"}
        for name in (
            "CUDA_VISIBLE_DEVICES",
            "NCCL_P2P_DISABLE",
            "NVIDIA_VISIBLE_DEVICES",
            "UCX_TLS",
            "PYTORCH_CUDA_ALLOC_CONF",
            "VLLM_ATTENTION_BACKEND",
            "VLLM_USE_V1",
            "VLLM_TPU_MOST_MODEL_LEN",
            "HF_HOME",
        )
    ]
    env.append({"name": "LD_LIBRARY_PATH", "value": "/opt/mine:/usr/local/nvidia/lib64:$(LD_LIBRARY_PATH)"})
    found = env_of(run(deployment([MODEL], SERVE, env=env)))
    assert found.pop("LD_LIBRARY_PATH") == "/opt/mine:$(LD_LIBRARY_PATH)"
    assert found == {
        "HF_HOME": "1",
        "VLLM_TARGET_DEVICE": "tpu",
        "VLLM_ENGINE_READY_TIMEOUT_S": "3600",
        "JAX_LOG_COMPILES": "1",
        "SKIP_JAX_PRECOMPILE": "0",
        "VLLM_XLA_CACHE_PATH": "/var/cache/vllm-xla",
    }


def test_an_autoscaler_on_gpu_load_has_no_copy_and_a_renamed_metric_is_followed():
    def scaler(metric: str) -> dict:
        return {
            "apiVersion": "autoscaling/v2",
            "kind": "HorizontalPodAutoscaler",
            "metadata": {"name": "chat", "namespace": "llm"},
            "spec": {
                "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "chat"},
                "minReplicas": 3,
                "maxReplicas": 6,
                "metrics": [{"type": "Pods", "pods": {"metric": {"name": metric}}}],
            },
        }

    result = run(deployment([MODEL], SERVE), scaler("prometheus.googleapis.com|DCGM_FI_DEV_GPU_UTIL|gauge"))
    assert "HorizontalPodAutoscaler" not in {m["kind"] for m in result.manifests}
    result = run(deployment([MODEL], SERVE), scaler("prometheus.googleapis.com|vllm:gpu_cache_usage_perc|gauge"))
    copied = only(result, "HorizontalPodAutoscaler")["spec"]
    assert copied["metrics"][0]["pods"]["metric"]["name"].split("|")[1] == "vllm:kv_cache_usage_perc"
    assert only(result, "Deployment")["spec"]["replicas"] == 3


def test_a_claim_that_one_node_holds_is_not_waited_for():
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "c", "namespace": "llm"},
        "spec": {"accessModes": ["ReadWriteOnce"]},
    }
    pod = {"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]}

    def at(path: str) -> dict:
        return deployment([MODEL], SERVE, pod=pod, container={"volumeMounts": [{"name": "v", "mountPath": path}]})

    assert run(at("/models"), claim).blockers
    cached = run(at("/root/.cache/huggingface"), claim)
    assert cached.blockers == []
    assert pod_of(cached)["volumes"][0] == {"name": "v", "emptyDir": {}}


def test_a_host_that_is_smaller_than_the_request_is_not_waited_for():
    resources = {"requests": {"memory": "900Gi", "cpu": "200"}, "limits": {"nvidia.com/gpu": 8}}
    found = server_of(run(deployment([MODEL], SERVE, container={"resources": resources})))["resources"]["requests"]
    assert found["memory"] == "326Gi"
    assert int(found["cpu"]) < 224


def test_disaggregated_prefill_and_multi_host_servers_block():
    config = '{"kv_connector":"NixlConnector","kv_role":"kv_producer"}'
    assert run(deployment([MODEL, "--kv-transfer-config", config], SERVE)).blockers
    assert run(deployment([MODEL, "--nnodes=2", "--node-rank=0"], SERVE)).blockers
    assert run(deployment(command=["bash", "-c", f"ray start --head && vllm serve {MODEL}"])).blockers


def test_long_names_stay_within_a_label_and_stay_apart():
    one, two = "a" * 62 + "x", "a" * 62 + "y"
    names = {only(run(deployment([MODEL], SERVE, name=name)), "Deployment")["metadata"]["name"] for name in (one, two)}
    assert len(names) == 2
    assert all(len(name) <= 63 and name.endswith("-tpu") for name in names)


def test_of_an_option_given_twice_the_one_that_wins_is_rewritten_and_the_other_goes():
    args = [MODEL, "--tensor-parallel-size", "2", "--max-model-len", "1024", "--tensor-parallel-size=4"]
    result = run(deployment(args, SERVE))
    assert [token for token in server_of(result)["args"] if "tensor-parallel" in token] == ["--tensor-parallel-size=8"]
    assert "2" not in server_of(result)["args"]
