"""The cloud of a dry run: it grants everything at once, and every run succeeds.

So a dry run goes through the code of a real one and prints each command of it.
"""

import json
from collections.abc import Sequence

from launch.cloud.gcloud import Done
from launch.cloud.job import ANSWER
from launch.cloud.slices import Slice


class Obliging:
    """`Gcloud(dry=True, answer=Obliging(spec))`. There is no slice until it is made."""

    def __init__(self, spec: Slice, *, there: bool = False):
        self.spec, self.there = spec, there

    def __call__(self, argv: Sequence[str]) -> Done:
        verb = next((w for w in argv if w in VERBS), "")
        if verb in ("create", "delete"):
            self.there = verb == "create"
        if verb == "list":
            return Done(0, "[]", "")
        if verb == "ssh":
            return Done(0, ANSWER + json.dumps(self._host(argv)), "")
        if verb == "describe":
            if not self.there:
                return Done(1, "", "NOT_FOUND")
            return Done(0, json.dumps(self._description("tpu-vm" in argv)), "")
        return Done(0, "", "")

    def _description(self, node: bool) -> dict:
        if node:
            return {"state": "READY", "networkEndpoints": [{}] * self.spec.hosts_each}
        return {"state": {"state": "ACTIVE"}}

    def _host(self, argv: Sequence[str]) -> dict:
        if not argv[-1].rpartition("host.py ")[2].startswith("poll"):
            return {}
        return {"attempt": 1, "stage": "ended", "code": 0, "alive": False}


VERBS = ("create", "delete", "describe", "list", "ssh", "scp")
