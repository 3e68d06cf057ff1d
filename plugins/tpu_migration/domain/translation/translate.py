"""Translate a vLLM Deployment and what belongs to it from GPUs to a TPU slice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tpu_migration.domain.accelerators import Slice
from tpu_migration.domain.translation import labels, objects, pod, probes, rules, scheduling
from tpu_migration.domain.translation import launch as launching
from tpu_migration.domain.translation.model import Manifest, Names, Notes, Sizing, Translation, shorten
from tpu_migration.domain.translation.neighbours import Neighbours, is_of, namespace_of
from tpu_migration.domain.translation.objects import name_of
from tpu_migration.domain.translation.script import clean_script
from tpu_migration.domain.translation.shape import check_shape, prune
from tpu_migration.domain.translation.variables import Configs
from tpu_migration.domain.translation.workload import (
    CONTAINERS,
    WHY_REFUSED,
    find_vllm_workload,
    is_tpu,
    vllm_container,
)
from tpu_migration.domain.values import copied

# A Deployment that reports failure while its first pod still compiles would be taken for broken.
PROGRESS_DEADLINE_S = 7200
_POD = "spec.template.spec"

# What clients lose whatever the flags say; losses that follow from a flag are said where it is rewritten.
LOST_FEATURES = (
    ("a request's seed is an error", "let the gate probe it"),
    (
        "min_p, penalties, logit_bias, bad_words, allowed_token_ids and min_tokens are silently ignored",
        "let the gate probe what they use",
    ),
    ("a request's guided_* fields are silently ignored", "clients must send structured_outputs"),
)

# Objects that are about the source and have no copy for the target.
_NOT_COPIED = {
    "NetworkPolicy": "it selects the source's pods and not the target's: who may reach these is not limited by it",
    "ServiceMonitor": "it selects the source's Service: the target is not scraped by it",
    "ScaledObject": "it scales the source: the target has no autoscaler",
    "VerticalPodAutoscaler": "it sizes the source's pods: the target's keep the requests that they have",
}


@dataclass(frozen=True)
class Options:
    """Hold what a translation is asked for: see `translate`."""

    target: Slice
    image: str
    names: Names | None = None
    config: Mapping[str, Manifest] | None = None
    replicas: int | None = None
    sizing: Sizing = field(default_factory=Sizing)


# The target's manifests, and which object of the file each stands in for: its index, or None.
Placed = list[tuple[Manifest, int | None]]


def translate(
    objects: Sequence[Manifest],
    *,
    target: Slice,
    image: str,
    names: Names | None = None,
    config: Mapping[str, Manifest] | None = None,
    replicas: int | None = None,
    sizing: Sizing | None = None,
) -> Translation:
    """Translate the one vLLM workload among `objects`; nothing given is changed.

    `objects` are the Deployment and what belongs to it, live or from a file. `replicas` overrides the
    source's. A workload that is on TPUs already comes back as it is, with a warning that says so.
    Raises InputError where there is no vLLM workload, or more than one.
    """
    check_shape(objects)
    notes = Notes()
    given = [prune(document) for document in objects]
    workload = find_vllm_workload(given)
    if is_tpu(workload):
        notes.warn(f"{workload.get('kind')} {name_of(workload)}", "it runs on TPUs already: nothing to translate")
        return Translation(copied(list(objects)), notes.changes, notes.warnings, notes.blockers)
    options = Options(target, image, names, config, replicas, sizing or Sizing())
    placed = translate_workload(workload, Neighbours(given), options, notes)
    return Translation([manifest for manifest, _ in placed], notes.changes, notes.warnings, notes.blockers)


def translate_workload(workload: Manifest, around: Neighbours, options: Options, notes: Notes) -> Placed:
    """Translate one of the vLLM workloads of a file (pruned objects, not on TPUs), adding to `notes`."""
    if workload.get("kind") == "Deployment":
        return _Workload(workload, around, options, notes).run()
    kind = workload.get("kind")
    message = f"a {kind} is not translated: {WHY_REFUSED.get(str(kind), 'it is no Deployment')}"
    notes.block(f"{kind} {name_of(workload)}", message, "serve the model from a Deployment of single-host pods first")
    return []


class _Workload:
    """Translate one Deployment."""

    def __init__(self, source: Manifest, around: Neighbours, options: Options, notes: Notes) -> None:
        self.source, self.around, self.notes = source, around, notes
        self.target, self.image, self.sizing = options.target, options.image, options.sizing
        self.names = options.names or Names.for_source(name_of(source))
        self.namespace = namespace_of(source)
        given = self.around.by_name("ConfigMap", self.namespace)
        self.configs = Configs({**given, **options.config} if options.config else given)
        template = (source.get("spec") or {}).get("template") or {}
        self.source_labels: dict[str, str] = dict((template.get("metadata") or {}).get("labels") or {})
        self.replicas = self._replicas(options.replicas)

    def _replicas(self, asked: int | None) -> int:
        if asked is not None:
            return asked
        given = (self.source.get("spec") or {}).get("replicas")
        scaler = self._scaler()
        least = int(((scaler or {}).get("spec") or {}).get("minReplicas") or 1) if scaler else 1
        return max(1 if given is None else int(given), least)

    def _scaler(self) -> Manifest | None:
        for document in self.around.pointing_at("HorizontalPodAutoscaler", name_of(self.source), self.namespace):
            if document["spec"]["scaleTargetRef"].get("kind", "Deployment") == "Deployment":
                return document
        return None

    def _selecting(self, kind: str) -> list[Manifest]:
        # A Service without a selector picks nothing, a budget with an empty one is about every pod.
        found = self.around.selecting(self.source_labels, self.namespace, kind)
        return [document for document in found if labels.pod_selector(document)]

    def _policy(self, kind: str, service: Manifest | None) -> Manifest | None:
        """Find the policy that points at the source's Service, or at its InferencePool."""
        for backend in [*([service] if service else []), *self._selecting("InferencePool")]:
            for policy in self.around.pointing_at(kind, name_of(backend), self.namespace):
                return policy
        return None

    def _rivals(self, pod_labels: Mapping[str, str]) -> list[labels.Selector]:
        """Find the selectors that match the target's pods though they must not."""
        return [
            selector
            for document in self.around.selecting(pod_labels, self.namespace)
            if not is_of(document, self.names.deployment)
            and (selector := labels.pod_selector(document)) is not None
            and (selector or document.get("kind") not in labels.EVERY_POD)
        ]

    def run(self) -> Placed:
        """Build every object of the target."""
        name, notes = self.names, self.notes
        identity = labels.identity(
            self.source, self._rivals, self.around.selector_keys, name.deployment, name.suffix, notes
        )
        deployment, serving = self._deployment(identity)
        source_pod = ((self.source.get("spec") or {}).get("template") or {}).get("spec") or {}
        services = self._selecting("Service")
        chosen = objects.choose_service(services, source_pod, serving.port)
        health, backend = (self._policy(kind, chosen) for kind in ("HealthCheckPolicy", "GCPBackendPolicy"))
        budget = next(iter(self._selecting("PodDisruptionBudget")), None)
        args = (name, self.namespace, identity, serving, notes)
        made: list[tuple[Manifest | None, Manifest | None]] = [
            (deployment, self.source),
            (objects.service(chosen, *args), chosen),
            (objects.health_check_policy(health, *args), health),
            (objects.backend_policy(backend, *args), backend),
            (objects.disruption_budget(budget, name, self.namespace, identity, self.replicas, notes), budget),
        ]
        if (scaler := self._scaler()) is not None:
            made.append((objects.autoscaler(scaler, name, identity, self.replicas, notes), scaler))
        for kind in ("PodMonitoring", "PodMonitor"):
            made += [(objects.scrape_rule(rule, name, identity, notes), rule) for rule in self._selecting(kind)[:1]]
        # The original ConfigMap stays: the GPU pods, and perhaps others, use it.
        for config, document in self.configs.patched.items():
            made.append((objects.config_map(document, self._copy_name(config), identity), None))
        self._speak_of(services, chosen)
        return [(manifest, self.around.index(source)) for manifest, source in made if manifest is not None]

    def _copy_name(self, config: str) -> str:
        return shorten(config, self.names.suffix)

    def _deployment(self, identity: labels.Identity) -> tuple[Manifest, rules.Serving]:
        notes, names = self.notes, self.names
        result = objects.clean(self.source)
        result["metadata"]["name"] = names.deployment
        result["metadata"]["labels"] = dict(identity.labels)
        notes.change("metadata.name", name_of(self.source), names.deployment, "it stands beside the source")
        spec = result["spec"]
        template = spec["template"]
        metadata = template.setdefault("metadata", {})
        metadata.pop("creationTimestamp", None)
        metadata["labels"] = dict(identity.pod_labels)
        spec["selector"] = {"matchLabels": dict(identity.selector)}
        pod.clean_annotations(template, notes)
        self._rollout(spec)
        serving = self._pod(template["spec"], identity)
        return result, serving

    def _rollout(self, spec: Manifest) -> None:
        strategy = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}
        why = "there is no spare slice to surge to: replace one replica at a time"
        self.notes.change("spec.strategy", spec.get("strategy"), strategy, why)
        spec["strategy"] = strategy
        self.notes.change(
            "spec.replicas", spec.get("replicas"), self.replicas, "as asked, or as the autoscaler keeps them, else one"
        )
        spec["replicas"] = self.replicas
        deadline = max(int(spec.get("progressDeadlineSeconds") or 0), PROGRESS_DEADLINE_S)
        why = "the default of 600 s calls a compiling pod a failed rollout"
        self.notes.change("spec.progressDeadlineSeconds", spec.get("progressDeadlineSeconds"), deadline, why)
        spec["progressDeadlineSeconds"] = deadline
        if spec.pop("paused", False):
            self.notes.change("spec.paused", True, None, "a paused rollout never starts")

    def _pod(self, template: Manifest, identity: labels.Identity) -> rules.Serving:
        notes, target = self.notes, self.target
        index = vllm_container(template)
        if index is None:
            raise ValueError("a vLLM workload without a vLLM container")
        container = template["containers"][index]
        used = pod.used_volumes(template)
        serving = self._arguments(container, template, f"{CONTAINERS}[{index}]")
        pod.drop_gpu_helpers(template, container, notes, _POD)
        index = next(at for at, item in enumerate(template["containers"]) if item is container)
        path = f"{CONTAINERS}[{index}]"
        notes.change(f"{path}.image", container.get("image"), self.image, "vLLM built for TPU")
        container["image"] = self.image
        pod.clean_containers(template, self.configs, notes, _POD, container)
        pod.drop_volumes(template, used, notes, _POD)
        pod.tpu_resources(container, target, notes, path)
        pod.cache_volume(template, container, self.configs, notes, path)
        pod.check_claims(template, self.around.by_name("PersistentVolumeClaim", self.namespace), notes, _POD)
        probes.rewrite(container, template, serving, notes, path)
        scheduling.rewrite(template, target, identity, self.source_labels, notes, _POD)
        if template.get("enableServiceLinks") is not False:
            why = "a Service named vllm would set VLLM_PORT, and this one VLLM_… names that vLLM refuses"
            notes.change(f"{_POD}.enableServiceLinks", template.get("enableServiceLinks"), False, why)
            template["enableServiceLinks"] = False
        copies = {name: self._copy_name(name) for name in self.configs.patched}
        pod.point_to_copies(template, copies)
        for old, new in copies.items():
            notes.change(f"ConfigMap {old}", old, new, "a copy for the target: the source keeps its own")
        return serving

    def _arguments(self, container: Manifest, template: Manifest, path: str) -> rules.Serving:
        notes = self.notes
        before: dict[str, Any] = {key: copied(container.get(key)) for key in ("command", "args")}
        launching.emit_command(container)
        why = 'the TPU image\'s entrypoint runs exec "$@": it has no program of its own'
        if before["command"] is None:
            notes.change(f"{path}.command", None, container["command"], why)
            known = "vllm-openai" in str(container.get("image", ""))
            if container["command"] == ["vllm", "serve"] and not known:
                message = f"the entrypoint of {container.get('image')} is taken for `vllm serve`"
                notes.warn(f"{path}.command", message, "compare with the image's own entrypoint")
        launch = launching.locate(container, template, self.configs, path)
        for problem in launch.problems:
            notes.block(path, problem, "give the ConfigMap together with the Deployment")
        if launch.line is None:
            message = "how this container starts vLLM is out of sight (an image's or a volume's script)"
            notes.block(f"{path}.command", message, "start it with `vllm serve` in command or args")
            return rules.Serving(8000, False, self.sizing.shutdown_timeout_s, None)
        serving = rules.rewrite(launch.line, self.target, self.sizing, notes)
        for script in launch.scripts:
            clean_script(script, notes)
        launch.commit()
        if launch.below_shell:
            message = "the shell gets the SIGTERM and does not pass it on: vLLM is killed with its streams at the end"
            notes.warn(f"{path}.command", message, "start it with `exec vllm serve` in the script")
        return serving

    def _speak_of(self, services: Sequence[Manifest], chosen: Manifest | None) -> None:
        notes = self.notes
        for service in services:
            if service is not chosen:
                message = "it also selects the source's pods; the target has one Service only"
                notes.warn(f"Service {name_of(service)}", message, "see who uses it")
        for pool in self._selecting("InferencePool"):
            message = "the target gets a Service, not a pool"
            notes.warn(f"InferencePool {name_of(pool)}", message, "the route's weights go between pool and Service")
        front = name_of(chosen or {})
        for route in self.around.naming(("HTTPRoute", "Ingress"), front, self.namespace):
            where = f"{route.get('kind')} {name_of(route)}"
            notes.warn(where, f"it still sends users to {front} only", "the migration moves its weights")
        for kind, message in _NOT_COPIED.items():
            for document in self._about_source(kind, chosen):
                notes.warn(f"{kind} {name_of(document)}", message, "see that the target has one, if it needs it")
        for message, remedy in LOST_FEATURES:
            notes.warn(f"Deployment {self.names.deployment}", f"clients lose on TPU: {message}", remedy)

    def _about_source(self, kind: str, chosen: Manifest | None) -> list[Manifest]:
        if kind in {"ScaledObject", "VerticalPodAutoscaler"}:
            return self.around.pointing_at(kind, name_of(self.source), self.namespace)
        own = self.source_labels if kind == "NetworkPolicy" else (chosen or {}).get("metadata", {}).get("labels") or {}
        found = self.around.of_kind(kind, self.namespace)
        field = "podSelector" if kind == "NetworkPolicy" else "selector"
        wanted = [((document.get("spec") or {}).get(field), document) for document in found]
        return [document for it, document in wanted if it and isinstance(it, Mapping) and labels.selects(it, own)]
