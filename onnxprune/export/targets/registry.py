"""The targets by name."""

from __future__ import annotations

from onnxprune.export.base import Target
from onnxprune.export.targets.android import Android
from onnxprune.export.targets.ios import Ios
from onnxprune.export.targets.qnn import Qnn
from onnxprune.export.targets.server import Server
from onnxprune.export.targets.web import Web

TARGETS: dict[str, Target] = {target.name: target for target in (Android(), Ios(), Web(), Qnn(), Server())}
