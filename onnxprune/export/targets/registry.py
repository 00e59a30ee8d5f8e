"""The targets by name."""

from __future__ import annotations

from onnxprune.export.android import Android
from onnxprune.export.base import Target
from onnxprune.export.ios import Ios
from onnxprune.export.qnn import Qnn
from onnxprune.export.server import Server
from onnxprune.export.web import Web

TARGETS: dict[str, Target] = {target.name: target for target in (Android(), Ios(), Web(), Qnn(), Server())}
