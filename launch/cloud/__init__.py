"""What launch/tpu.py is made of. Standard library only: it runs on a user's laptop.

arguments.py, verbs.py   the command line
slices.py    what is asked for: accelerator, topology, tier; chips, hosts, cost
commands.py  the exact gcloud command lines
gcloud.py    calling them: time limits, kinds of errors; obliging.py: a dry run
states.py    what `describe` says, and the state machine over it
ship.py      the code as it is here: commit plus uncommitted changes, with a hash
job.py       one attempt: ship, set up, check, start, watch
relaunch.py  attempt after attempt, until the run ends or no progress is made
store.py     what the laptop remembers of a run
host.py      copied to every host: environment, start, poll, stop
supervise.py likewise: the devices, then the run; its log and exit code
"""
