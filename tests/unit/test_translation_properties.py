"""What holds for every manifest that hypothesis can think of."""

from __future__ import annotations

import copy
import json
import random
import shlex
from itertools import pairwise

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.translation_builders import (
    IMAGE,
    config_map,
    deployment,
    env_of,
    line_of,
    only,
    pod_of,
    run,
    server_of,
    service,
    slice_of,
)
from tpu_migration.domain.translation import InputError, describe_source, translate_documents
from tpu_migration.domain.translation.flags import REMOVED
from tpu_migration.domain.translation.labels import selects
from tpu_migration.domain.translation.shell import Edits, commands
from tpu_migration.domain.translation.vocabulary import SWITCHES, VALUED, full_name, is_switch

# Derandomized: the same examples on each run, so that a failure is the change's and can be repeated.
SENT = settings(max_examples=120, deadline=None, derandomize=True)

_KEYS = st.sampled_from(["app", "team", "tier", "app.kubernetes.io/name", "version", "role"])
LABELS = st.dictionaries(_KEYS, st.sampled_from(["a", "b", "a-tpu", "x1", ""]), min_size=1, max_size=4)

_GPU_FLAGS = sorted(name for name in REMOVED if name not in {"task", "quantization-config"})
_PLAIN = [
    ["--trust-remote-code"],
    ["--max-model-len", "4096"],
    ["--max-num-seqs", "64"],
    ["--seed", "-1"],
    ["--stream-interval", "4"],
    ["--enable-prefix-caching"],
    ["--port", "8123"],
    ["--served-model-name", "one", "two"],
    ["--gpu-memory-utilization", "0.97"],
    ["--tensor-parallel-size", "2"],
    ["--chat-template", "{{ m }} 'x' \"y\" $"],
    ["--my-own-flag", "v w"],
    ["--dtype", "half"],
]


@st.composite
def options(draw) -> list[list[str]]:
    gpu = [
        [f"--{name}"] if is_switch(name) else [f"--{name}", draw(st.sampled_from(["1", "x", '{"a": 1}']))]
        for name in draw(st.lists(st.sampled_from(_GPU_FLAGS), max_size=6, unique=True))
    ]
    plain = draw(st.lists(st.sampled_from(_PLAIN), max_size=6, unique_by=lambda option: option[0]))
    return draw(st.permutations([*gpu, *plain]))


@st.composite
def sources(draw) -> dict:
    """Draw a Deployment: some options, in a list or a shell string, with GPU variables around."""
    glued = draw(st.booleans())
    given_options = draw(options())
    words = ["org/model"]
    for option in given_options:
        words += [f"{option[0]}={option[1]}"] if glued and len(option) == 2 else option
    names = ["CUDA_HOME", "NCCL_IB_HCA", "NVIDIA_DRIVER_CAPABILITIES", "VLLM_USE_V1", "UCX_NET", "HF_TOKEN"]
    env = [{"name": name, "value": "x"} for name in draw(st.lists(st.sampled_from(names), unique=True))]
    labels = draw(LABELS)
    if draw(st.booleans()):
        return deployment(words, ["vllm", "serve"], env=env, labels=labels)
    joint = draw(st.sampled_from([" ", " \\\n  "]))
    script = "set -e; vllm serve " + joint.join(shlex.quote(word) for word in words)
    return deployment(command=["/bin/sh", "-c", script], env=env, labels=labels)


@SENT
@given(sources(), LABELS)
def test_nothing_of_the_gpu_survives_and_the_input_stays_as_it_was(source, selector):
    front = service(selector=selector)
    before = copy.deepcopy([source, front])
    result = run(source, front)
    assert [source, front] == before
    assert "nvidia" not in json.dumps(result.manifests)
    line = line_of(result)
    assert not [option.written for option in line.options if option.name in REMOVED]
    assert not {"CUDA_HOME", "NCCL_IB_HCA", "VLLM_USE_V1", "UCX_NET"} & set(env_of(result))
    requests, limits = (server_of(result)["resources"][part]["google.com/tpu"] for part in ("requests", "limits"))
    assert requests == limits == line.integer("tensor-parallel-size") == 8


@SENT
@given(sources())
def test_what_is_not_about_the_gpu_survives(source):
    asked, result = describe_source(source), run(source)
    line = line_of(result)
    assert line.model()[1] == "org/model"
    assert line.served_names() == list(asked.served_names)
    assert describe_source(only(result, "Deployment")).port == asked.port
    original = source["spec"]["template"]["spec"]["containers"][0]
    text = " ".join([*original["command"], *original.get("args", [])])
    for name, value in (("my-own-flag", "v w"), ("stream-interval", "4"), ("seed", "-1")):
        assert (line.value(name) == value) is (f"--{name}" in text)
    if "--chat-template" in text and "/bin/sh" not in text:
        option = line.get("chat-template")
        assert option is not None
        assert option.values == ["{{ m }} 'x' \"y\" $"]


@SENT
@given(LABELS, LABELS, LABELS)
def test_gpu_and_tpu_services_never_select_each_others_pods(labels, first, second):
    source = deployment(["org/model"], ["vllm", "serve"], labels=labels)
    fronts = [service("one", first), service("two", second)]
    result = run(source, *fronts)
    pods = only(result, "Deployment")["spec"]["template"]["metadata"]["labels"]
    for front in fronts:
        assert not selects({"matchLabels": front["spec"]["selector"]}, pods)
    own = only(result, "Service")["spec"]["selector"]
    assert selects({"matchLabels": own}, pods)
    assert not selects({"matchLabels": own}, labels)
    assert not selects(source["spec"]["selector"], pods)
    assert not selects(only(result, "Deployment")["spec"]["selector"], labels)


@SENT
@given(sources())
def test_the_translation_of_a_translation_is_itself(source):
    once = run(source)
    again = run(*once.manifests)
    assert again.manifests == once.manifests
    assert again.changes == []


@SENT
@given(sources())
def test_every_change_says_why_and_the_pod_can_be_scheduled(source):
    result = run(source)
    assert all(change.why and change.old != change.new for change in result.changes)
    mounts = {mount["name"] for mount in server_of(result)["volumeMounts"]}
    assert mounts <= {volume["name"] for volume in pod_of(result)["volumes"]}


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.text(alphabet="ab-= \t\n\\'\"$(){}|&;<>#`x0", max_size=40))
def test_a_script_of_any_kind_is_read_to_its_end_and_unedited_is_itself(script):
    words = [word for command in commands(script) for word in command]
    assert all(0 <= word.start < word.end <= len(script) for word in words)
    assert all(one.end <= two.start for one, two in pairwise(words))
    assert Edits(script).result() == script


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.text(alphabet="ab c'\"\\-=", max_size=6), min_size=1, max_size=5))
def test_quoted_words_are_read_as_the_shell_reads_them(words):
    script = " ".join(shlex.quote(word) for word in words)
    assert [word.text for command in commands(script) for word in command] == shlex.split(script)


def test_every_flag_is_itself_and_no_flag_is_both_switch_and_valued():
    assert not VALUED & SWITCHES
    aliases = {"device-memory-utilization"}
    assert all(full_name(f"--{name}") == (name, False) for name in (VALUED | SWITCHES) - aliases)


def _places(value, path=()):
    if path:
        yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield from _places(item, (*path, key))


@pytest.mark.parametrize("seed", range(8))
def test_a_mangled_manifest_is_translated_or_refused_but_never_crashes_the_translation(seed):
    chance = random.Random(seed)
    probe = {"httpGet": {"path": "/health", "port": 8000}, "failureThreshold": 3}
    container = {"livenessProbe": probe, "lifecycle": {"preStop": {"sleep": {"seconds": 5}}}}
    container["envFrom"] = [{"configMapRef": {"name": "runtime"}}]
    source = deployment(
        ["$(M)", "--port", "80"], ["vllm", "serve"], container=container, env=[{"name": "A", "value": "b"}]
    )
    whole = [source, service(), config_map("runtime", M="org/model")]
    outcomes = set()
    for _ in range(120):
        documents = copy.deepcopy(whole)
        document = chance.choice(documents)
        *way, last = chance.choice(list(_places(document)))
        for key in way:
            document = document[key]
        document[last] = chance.choice([None, "odd", 7, [1, "a"], {"a": 1}, "", -1, True])
        try:
            translate_documents(yaml.safe_dump_all(documents), target=slice_of(), image=IMAGE)
            outcomes.add("translated")
        except InputError as error:
            assert error.message
            outcomes.add("refused")
    assert outcomes == {"translated", "refused"}
