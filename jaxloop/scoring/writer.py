"""Who writes to requests: a model of the run, on its mesh or another, or a server."""

from dataclasses import dataclass, field

from jaxloop.mesh import MeshShape
from jaxloop.scoring.endpoint import Endpoint


@dataclass(frozen=True)
class Placed:
    """A model of its own directory, cut over the run's devices in a way of its own.

    For a judge that is larger than the policy, or whose heads another mesh divides:

        Judge(by=Placed("JUDGE_DIR", MeshShape(data=1, tensor=8)))

    Its directory alone (`by="JUDGE_DIR"`) is cut as the policy is.
    """

    path: str
    """A directory (or hub id) with a model and its tokenizer."""
    mesh: MeshShape = field(default_factory=MeshShape)

    def __str__(self) -> str:
        """What requests are known by: where a model stands does not change it."""
        return self.path


By = str | Placed | Endpoint
