"""The README knows every setting."""

import base64
import hashlib
import hmac
import json
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from app.settings import Settings

_README = (Path(__file__).parents[2] / "README.md").read_text()


@pytest.mark.parametrize("name", sorted(Settings.model_fields))
def test_every_setting_is_in_the_readme(name: str) -> None:
    assert f"`{name.upper()}`" in _README


def test_the_readme_names_no_setting_that_does_not_exist() -> None:
    rows = re.findall(r"^\| ((?:`[A-Z_]+`(?:, )?)+) \|", _README, re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`([A-Z_]+)`", row)}
    assert named == {name.upper() for name in Settings.model_fields}


@pytest.mark.skipif(shutil.which("node") is None, reason="needs Node.js")
def test_the_javascript_refuses_forged_and_recorded_requests(tmp_path: Path) -> None:
    [snippet] = re.findall(r"```js\n(.*?)```", _README, re.DOTALL)
    key, body, now = b"k" * 32, '{"a":1}', int(time.time())

    def headers(timestamp: object, key: bytes = key) -> dict[str, object]:
        signed = hmac.digest(key, f"msg.{timestamp}.{body}".encode(), hashlib.sha256)
        signature = "v1,b3RoZXI= v1," + base64.b64encode(signed).decode()
        return {"webhook-id": "msg", "webhook-timestamp": str(timestamp), "webhook-signature": signature}

    cases = [
        headers(now),
        headers(now - 100),
        headers(now, b"x" * 32),
        headers(now - 400),
        headers(now + 400),
        headers("x"),
    ]
    arguments = f"{json.dumps(body)}, {json.dumps(base64.b64encode(key).decode())}"
    script = tmp_path / "snippet.mjs"
    script.write_text(
        f"{snippet}\nconsole.log(JSON.stringify({json.dumps(cases)}.map((one) => isGenuine(one, {arguments}))));\n"
    )
    told = subprocess.run(["node", script], capture_output=True, text=True, check=True).stdout
    assert json.loads(told) == [True, True, False, False, False, False]
