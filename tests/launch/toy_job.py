"""What `jaxloop` is on the fake hosts of the quick tests: a few steps, no JAX.

    run CONFIG out=DIR [steps=3] [hold=N] [exit=CODE] [at=N] [host=H] [print=NAME]

hold: at step N of the first attempt, wait to be killed. exit: end with
CODE at step `at` on process `host`, every time. print: show an environment variable.
Words that it does not know are shown and left alone.
"""

import json
import os
import sys
import time
from pathlib import Path

words = dict(word.split("=", 1) for word in sys.argv[3:])
words.setdefault("hold", os.environ.get("TOY_HOLD", "0"))
process, out = int(os.environ["JAX_PROCESS_ID"]), Path(words["out"])
attempt = json.loads(Path("../job.json").read_text())["attempt"]
print("toy job", *sys.argv[1:], flush=True)
if "print" in words:
    print(words["print"], "is", os.environ.get(words["print"]), flush=True)

folder = out / "checkpoints"
folder.mkdir(parents=True, exist_ok=True)
done = [int(path.name[5:]) for path in folder.glob("step_*")]
first = max(done, default=0) + 1
print("begins at step", first, flush=True)
for step in range(first, int(words.get("steps", 3)) + 1):
    if "exit" in words and step == int(words.get("at", 1)):
        if process == int(words.get("host", 0)):
            sys.exit(int(words["exit"]))
        time.sleep(600)
    if step == int(words["hold"]) and attempt == 1:
        (out / f"held-{process}").touch()
        time.sleep(600)
    if process == 0:
        (folder / f"step_{step:08d}").mkdir(exist_ok=True)
        with open(out / "metrics.jsonl", "a") as metrics:
            metrics.write(f"step {step}\n")
if process == 0:
    (out / "report.html").write_text("<html>")
print("done", flush=True)
