"""The simulated provider as a process: prints its base URL, ends when its input does."""

from __future__ import annotations

import json
import sys

from labelling_parts.machine import pin
from router_runtime.simulator.config import load_simulator_config
from router_runtime.simulator.serve import SimulatorServer


def main() -> None:
    settings = json.loads(sys.argv[1])
    pin(settings["core"])
    with SimulatorServer(load_simulator_config(settings["config"])) as server:
        print(server.base_url, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
