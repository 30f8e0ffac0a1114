"""User, password and signature of a URL: what reads it has them, and nothing writes or prints them."""

import pytest

from adg_plugin.config.schema import ADGConfig
from adg_plugin.errors import ConfigError, DataError, redacted

SIGNED = "https://b.s3.amazonaws.com/pool.jsonl?X-Amz-Credential=AK%2F1&X-Amz-Date=2026&X-Amz-Signature=abc&versionId=7"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:word@example.org/a@b.jsonl", "https://example.org/a@b.jsonl"),
        ("s3://key:se/cret@bucket/x", "s3://key:se/cret@bucket/x"),  # no URL: a slash ends the host
        ("hdfs://me@host:8020/x", "hdfs://host:8020/x"),
        ("https://me:p@ss@host/x", "https://host/x"),
        (
            SIGNED,
            "https://b.s3.amazonaws.com/pool.jsonl?X-Amz-Credential=***&X-Amz-Date=2026&X-Amz-Signature=***&versionId=7",
        ),
        ("https://a.blob/x?sv=2&sig=q%3D&se=1", "https://a.blob/x?sv=2&sig=***&se=1"),
        ("https://h/x?access_token=t#part", "https://h/x?access_token=***#part"),
        ("zip://x.json::https://u:p@h/a.zip", "zip://x.json::https://h/a.zip"),
        ("cannot open 'https://u:p@h/x?Signature=s': no", "cannot open 'https://h/x?Signature=***': no"),
        ("two: https://u:p@h/x, ftp://a:b@c/d", "two: https://h/x, ftp://c/d"),
        ("mail me@example.org?key=1", "mail me@example.org?key=1"),
        ("https://h/x?download=true", "https://h/x?download=true"),
    ],
)
def test_urls_are_shown_without_what_gives_access(text, shown):
    assert redacted(text) == shown
    assert redacted(shown) == shown


def test_settings_are_read_whole_and_written_without():
    entries = ["https://u:p@h/x", {"path": "json", "data_files": [SIGNED, "b.jsonl"]}]
    config = ADGConfig.parse({"datasets": entries})
    assert config.updated(budget=3).datasets[0].path == "https://u:p@h/x"
    assert config.updated(budget=3).datasets[1].data_files == [SIGNED, "b.jsonl"]
    written = config.model_dump(mode="json")["datasets"]
    assert (written[0]["path"], written[1]["data_files"]) == ("https://h/x", [redacted(SIGNED), "b.jsonl"])
    assert "abc" not in config.model_dump_json()


def test_errors_hold_none():
    assert str(DataError(f"{SIGNED}: no rows")) == f"{redacted(SIGNED)}: no rows"
    err = ConfigError(["https://u:p@h: no", "b"], source="https://u:p@h/c.yaml")
    assert "p@" not in str(err)
    assert err.problems == ["https://h: no", "b"]
