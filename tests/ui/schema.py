"""docs/virtirq.schema.json, and documents held against it."""

from __future__ import annotations

import json
from typing import Any

from jsonschema import Draft202012Validator

from tests.conftest import REPOSITORY

SCHEMA: dict[str, Any] = json.loads((REPOSITORY / "docs/virtirq.schema.json").read_text())


def validator(name: str) -> Draft202012Validator:
    return Draft202012Validator({"$ref": f"#/$defs/{name}", "$defs": SCHEMA["$defs"]})


def valid(text: str, name: str) -> Any:
    """The document, which is one of this name. Raises ValidationError."""
    data = json.loads(text)
    validator(name).validate(data)
    return data


def valid_if_json(text: str) -> None:
    """Raises ValidationError for a JSON document that is none of ours."""
    if text.startswith("{"):
        Draft202012Validator(SCHEMA).validate(json.loads(text))
