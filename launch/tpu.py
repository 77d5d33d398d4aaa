#!/usr/bin/env python3
"""Runs an experiment on Google Cloud TPUs, from a laptop to a pod, through preemption.

  ./launch/tpu.py run NAME --zone ZONE --accelerator v6e-16 --bucket gs://BUCKET \\
      configs/self_rewarding.py a.b=3

gets the slice, copies the code as it is here, makes the environment, starts the run on
every host and watches it; a preempted or broken slice is replaced, and the run goes on
from its newest good checkpoint. In the end the slice is deleted. docs/tpu.md tells all.

Exit codes: 0 done, 1 a fault in the program, 2 something for you to mend, 3 training
diverged, 75 the cloud (the same command goes on), 128 + N ended by signal N.
Needs Python >= 3.10, git and gcloud. docs/tpu.md: from an empty project to the end.
"""

import sys
from pathlib import Path


def main() -> int:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from launch.cloud import verbs

    return verbs.main(sys.argv[1:], __doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
