"""What others are to read shows no secret and no user's words, in whatever form a log or a server gave them."""

from __future__ import annotations

import json

import pytest

from tpu_migration.domain.masking import masked
from tpu_migration.errors import PermanentError

KEY = "-----BEGIN PRIVATE KEY-----\nMIIplanted\n-----END PRIVATE KEY-----\n"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Authorization: Bearer abc.def", "Authorization: Bearer ***"),
        ("curl -H 'x' bearer eyJhbGci.x.y ok", "curl -H 'x' bearer *** ok"),
        ("HF_TOKEN=hf_abcdefgh12345 started", "HF_TOKEN=*** started"),
        ("downloading with hf_abcdefgh12345", "downloading with ***"),
        ("vllm serve m --api-key sk-1234 --port 8000", "vllm serve m --api-key *** --port 8000"),
        ("vllm serve m --api-key=s3cret --port 8000", "vllm serve m --api-key=*** --port 8000"),
        ("['serve', '--api-key', 's3cret', '--port']", "['serve', '--api-key', ***, '--port']"),
        ("['serve', '--hf-token', 's3cret']", "['serve', '--hf-token', ***]"),
        ("{'api_key': 's3cret', 'port': 1}", "{'api_key': ***, 'port': 1}"),
        # How vLLM tells its arguments at its start.
        ("non-default args: {'api_key': ['one', 'two'], 'port': 1}", "non-default args: {'api_key': ***, 'port': 1}"),
        ("token=abc&x=1", "token=***"),
        ('"WANDB_API_KEY": "s3cret"', '"WANDB_API_KEY": ***'),
        ("password: hunter2hunter2", "password: ***"),
        (f"key {KEY}!", "key ***\n!"),
        (
            json.dumps({"type": "service_account", "private_key": KEY}),
            '{"type": "service_account", "private_key": ***}',
        ),
        ("https://me:s3cret@metrics.example/api", "https://***metrics.example/api"),
        ("no answer of https://hooks.slack.com/services/T0/B0/s3cret", "no answer of https://hooks.slack.com/***"),
        (
            "Request 1 details: prompt: 'it\\'s me', prompt_token_ids: [1, 2]",
            "Request 1 details: prompt: ***, prompt_token_ids: ***",
        ),
        (
            'Generated response 1: output: "he\'s", output_token_ids: (cut',
            "Generated response 1: output: ***, output_token_ids: (cut",
        ),
    ],
)
def test_what_nobody_else_may_read_is_masked(text, shown):
    assert masked(text) == shown
    assert masked(shown) == shown


@pytest.mark.parametrize(
    "text",
    [
        "Prepared token paddings: [16, 32]",
        "max_tokens=256, prompt_tokens: 512",
        "Secret huggingface has no key token: no new pod starts",
        "the token endpoint does not answer",
        "cannot read Secret tpu-migration-vllm-snapshot-1: 403 forbidden",
        "vllm/vllm-tpu@sha256:" + "0" * 64,
        "http://10.0.0.1:8000/v1/completions answers 503",
        "p99 TTFT 812 ms > limit 700 ms (n=2000)",
    ],
)
def test_what_people_need_to_read_stays(text):
    assert masked(text) == text


def test_every_error_is_masked_when_it_is_made():
    error = PermanentError("pod vllm-0 answers /v1/models with 401: Bearer s3cret-token")
    assert str(error) == "pod vllm-0 answers /v1/models with 401: Bearer ***"
    assert "s3cret" not in repr(error)
