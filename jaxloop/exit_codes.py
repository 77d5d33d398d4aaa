"""How a command ends, for whatever started it: a shell, SLURM, a launcher of ours.

    0    done
    1    a fault of ours, with its traceback
    2    configuration: something for the user to mend; trying again changes nothing
    3    the training diverged; the newest checkpoint has the weights before it did
    75   infrastructure: a process of the job was lost or did not come; try again
    130  Ctrl-C
    143  SIGTERM (preemption): all is saved; the same command goes on from there

75 is EX_TEMPFAIL of sysexits.h, 130 and 143 are 128 and the number of the signal.
"""

DONE = 0
FAULT = 1
CONFIGURATION = 2
DIVERGED = 3
INFRASTRUCTURE = 75
INTERRUPTED = 130
PREEMPTED = 143

AGREED = (DONE, DIVERGED, PREEMPTED)
"""Endings that all processes of a job come to at the same step."""
