"""Hold what the kubernetes client's type tables leave out: how lists merge, and Go's narrower types."""

from __future__ import annotations

ListType = tuple[tuple[str, ...], str, bool]


def _by(*keys: str, patch: str = "") -> ListType:
    return keys, patch or keys[0], False


_SET: ListType = ((), "*", True)
_CONDITIONS = _by("type")

# (Go struct, field) → (keys of server-side apply, key of a strategic merge patch, is a set); an
# empty struct name holds wherever the field occurs. A list that is not here is atomic: it is
# replaced as a whole. Source: the x-kubernetes-* markers in the API's OpenAPI description.
LISTS: dict[tuple[str, str], ListType] = {
    ("", "conditions"): _CONDITIONS,
    ("", "finalizers"): _SET,
    ("ObjectMeta", "ownerReferences"): _by("uid"),
    ("PodSpec", "containers"): _by("name"),
    ("PodSpec", "initContainers"): _by("name"),
    ("PodSpec", "ephemeralContainers"): _by("name"),
    ("PodSpec", "volumes"): _by("name"),
    ("PodSpec", "imagePullSecrets"): _by("name"),
    ("PodSpec", "hostAliases"): _by("ip"),
    ("PodSpec", "resourceClaims"): _by("name"),
    ("PodSpec", "schedulingGates"): _by("name"),
    ("PodSpec", "topologySpreadConstraints"): _by("topologyKey", "whenUnsatisfiable"),
    ("PodStatus", "podIPs"): _by("ip"),
    ("Container", "env"): _by("name"),
    ("Container", "ports"): _by("containerPort", "protocol"),
    ("Container", "volumeMounts"): _by("mountPath"),
    ("Container", "volumeDevices"): _by("devicePath"),
    ("ResourceRequirements", "claims"): _by("name"),
    ("ServiceSpec", "ports"): _by("port", "protocol"),
    ("ServiceAccount", "secrets"): _by("name"),
    ("NodeSpec", "podCIDRs"): _SET,
    ("NodeStatus", "addresses"): _by("type"),
    ("Endpoint", "addresses"): _SET,
    ("LabelSelector", "matchExpressions"): ((), "", False),
}

KEY_DEFAULTS: dict[str, object] = {"protocol": "TCP"}

# Structs, and maps as (struct, field), that have one owner as a whole.
ATOMIC = frozenset(
    {
        "LabelSelector",
        "LabelSelectorRequirement",
        "ObjectReference",
        "LocalObjectReference",
        "TypedLocalObjectReference",
        "SecretKeySelector",
        "ConfigMapKeySelector",
        "ObjectFieldSelector",
        "ResourceFieldSelector",
        "SecretReference",
        "NodeSelector",
        "NodeSelectorTerm",
        "OwnerReference",
        "RoleRef",
        "Subject",
        ("PodSpec", "nodeSelector"),
        ("ServiceSpec", "selector"),
    }
)

# Fields that hold any JSON.
RAW = frozenset({"FieldsV1"})

INT64 = frozenset(
    {
        "terminationGracePeriodSeconds",
        "activeDeadlineSeconds",
        "deletionGracePeriodSeconds",
        "tolerationSeconds",
        "generation",
        "observedGeneration",
        "expirationSeconds",
        "runAsUser",
        "runAsGroup",
        "fsGroup",
    }
)

MICRO_TIMES = frozenset({("LeaseSpec", "acquireTime"), ("LeaseSpec", "renewTime"), ("Event", "eventTime")})

QUANTITIES = frozenset(
    {
        ("ResourceRequirements", "limits"),
        ("ResourceRequirements", "requests"),
        ("VolumeResourceRequirements", "limits"),
        ("VolumeResourceRequirements", "requests"),
        ("NodeStatus", "capacity"),
        ("NodeStatus", "allocatable"),
        ("PersistentVolumeClaimStatus", "capacity"),
        ("PodSpec", "overhead"),
    }
)
