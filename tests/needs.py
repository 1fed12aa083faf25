"""What a test does where the machine lacks something it needs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import NoReturn

import pytest

NOBODY = 65534
REQUIRED = os.environ.get("VIRTIRQ_LAB") == "required"
"""Set by CI, where nothing may be left out."""


def not_run(what: str) -> NoReturn:
    """Fails where everything must run; elsewhere skips, and the summary says it loudly."""
    if REQUIRED:
        pytest.fail(what)
    pytest.skip(f"NOT RUN: {what}")


def need_program(name: str) -> None:
    """`not_run` unless the program is there."""
    if shutil.which(name) is None:
        not_run(f"{name} is not installed")


def need_chromium() -> str:
    """Chromium's name here, or `not_run`."""
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next(filter(shutil.which, names), None)
    if found is None:
        not_run("chromium is not installed, in which pictures and reports are looked at")
    return found


def need_libvirt() -> ModuleType:
    """libvirt-python, or `not_run`; `make test` builds it where libvirt's headers are."""
    try:
        return import_module("libvirt")
    except ImportError as error:
        not_run(f"libvirt-python is not installed ({error}): see lab/packages.txt")


@contextmanager
def unprivileged() -> Iterator[None]:
    """As a user who may read no more than everybody may; who is none other than that stays so."""
    me = os.geteuid()
    if me == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if me == 0:
            os.seteuid(0)
