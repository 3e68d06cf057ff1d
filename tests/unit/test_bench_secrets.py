"""A key that a load is sent with stays in its requests: it is in no result, no summary, and on no screen."""

from __future__ import annotations

import logging
import socket

from tpu_migration.cli import main

PLANTED = "PLANTEDgatewayKEY"


def test_a_load_that_fails_tells_no_header(tmp_path, capsys, caplog):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]  # bound and not listened on: each request is refused at once
        out = tmp_path / "run.jsonl"
        words = f"bench --url http://127.0.0.1:{port} --model m --rate 50 --requests 5 --seed 1 --out {out}".split()
        with caplog.at_level(logging.DEBUG):
            main([*words, "--header", f"Authorization=Bearer {PLANTED}"])
    text = out.read_text()
    assert text.count('"ok":false') + text.count('"ok": false') == 5, text[:500]
    shown = capsys.readouterr()
    for each in (text, shown.out, shown.err, caplog.text):
        assert PLANTED not in each
