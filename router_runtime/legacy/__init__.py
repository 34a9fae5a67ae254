"""Files of the published router, read and written on request only, never on a load path."""

from router_runtime.legacy.exporting import export_files
from router_runtime.legacy.importing import import_artifact, plain_features
from router_runtime.legacy.nat_config import NatConversion, convert_nat_config

__all__ = [
    "NatConversion",
    "convert_nat_config",
    "export_files",
    "import_artifact",
    "plain_features",
]
