#!/usr/bin/env bash
# Checks everything; fails when anything fails.
#
#   ./launch/test.sh            style, types, scripts, tests on both lines of JAX
#   ./launch/test.sh --full     the tests that take minutes too
#   ./launch/test.sh --parity   only the comparisons with torch and transformers
#                               (--full --parity: the long ones too)
#   ./launch/test.sh ARGS...    only `pytest ARGS...`, on one line of JAX
#
# Needs python3 >= 3.11 with venv; installs what tests need into .venv-test-* here.
# JAXLOOP_PYTHON=COMMAND chooses the interpreter, JAXLOOP_TEST_WORKERS=2 the processes.
# A call of pytest that takes longer than an hour (--full: four) fails;
# JAXLOOP_TEST_MINUTES=N allows another time.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/common.sh
. launch/common.sh

# Where the two lines of JAX can differ, once each: transforms and meshes, sampling,
# checkpoints.
COVERING=(tests/models tests/sampling tests/training/test_step.py
    tests/training/test_logprobs.py tests/test_checkpoint.py tests/test_mesh.py)
# And under --full every kind of run from end to end, killed and resumed; many processes.
FURTHER=(tests/loop/test_resume_rounds.py tests/loop/test_resume_online.py tests/distributed)

marks="not full and not parity" comparing="parity and not full" parity="" hasty=1
minutes=60
while [ $# -gt 0 ]; do
    case $1 in
        --full)
            marks="not parity" comparing=parity hasty=0 minutes=240
            COVERING+=("${FURTHER[@]}")
            ;;
        --parity) parity=yes ;;
        -h | --help)
            sed -n '2,13s/^# \{0,1\}//p' launch/test.sh
            exit 0
            ;;
        --)
            shift
            break
            ;;
        *) break ;;
    esac
    shift
done

minutes=${JAXLOOP_TEST_MINUTES:-$minutes}

failed=()
step() { # NAME COMMAND...: runs it, remembers if it failed
    local name=$1 start=$SECONDS
    shift
    printf '\n== %s: %s\n' "$name" "$*"
    if "$@"; then
        printf '== %s: ok, %d s\n' "$name" $((SECONDS - start))
    else
        failed+=("$name")
        printf '== %s: FAILED, %d s\n' "$name" $((SECONDS - start))
    fi
}

finish() {
    if [ ${#failed[@]} -gt 0 ]; then
        die "failed: $(printf '%s; ' "${failed[@]}")"
    fi
    say "all checks passed in $SECONDS s"
}

versions() { # VENV: what it tests with
    "$1/bin/python" -c '
import sys
from importlib.metadata import version
names = ("jax", "flax", "orbax-checkpoint", "transformers")
print(f"Python {sys.version.split()[0]}", *(f"{n} {version(n)}" for n in names), sep=", ")'
}

run_pytest() { # VENV HASTY ARGS...: with HASTY, programs are compiled in less time
    local venv=$1 hasty=$2 code=0
    shift 2
    # Many tests compile the same small programs.
    JAX_COMPILATION_CACHE_DIR=$PWD/$venv/compiled \
        JAX_DISABLE_MOST_OPTIMIZATIONS=$hasty \
        JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0.3 \
        JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES=-1 \
        timeout --foreground --kill-after=60 "${minutes}m" \
        "$venv/bin/python" -m pytest -n "${JAXLOOP_TEST_WORKERS:-2}" --dist loadfile "$@" \
        || code=$?
    case $code in
        124 | 137) say "pytest was stopped after $minutes minutes: a test hangs (its stack is" \
            "above), or the pool does after a worker crashed. JAXLOOP_TEST_MINUTES=N allows more" ;;
    esac
    return "$code"
}

venv_for() { # PYTHON [parity]: makes the venv if need be and prints its folder
    local version folder
    version=$("$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    folder=.venv-${2:-test}-$version
    ensure_venv "$folder" "$1" "test${2:+,$2}"
    echo "$folder"
}

if [ -n "$parity" ]; then
    python=$(find_python 3.11 || find_python) || die "no Python >= 3.11 with venv found"
    venv=$(venv_for "$python" parity)
    versions "$venv"
    step "parity with torch and transformers" run_pytest "$venv" "$hasty" -m "$comparing" "$@"
    finish
    exit 0
fi

python=$(find_python) || die "no Python 3.11 or newer with venv was found." \
    "Install one (Debian: apt install python3 python3-venv) or name it: JAXLOOP_PYTHON=/path/to/python3"
venv=$(venv_for "$python")
versions "$venv"
if [ $# -gt 0 ]; then
    step pytest run_pytest "$venv" "$hasty" "$@"
    finish
    exit 0
fi

step "ruff check" "$venv/bin/ruff" check .
step "ruff format" "$venv/bin/ruff" format --check .
step pyright "$venv/bin/pyright" --pythonpath "$venv/bin/python"
step shellcheck "$venv/bin/shellcheck" -x launch/*.sh launch/slurm.sbatch .ci/run
step "tests" run_pytest "$venv" "$hasty" -m "$marks"

case $venv in
    *-3.11) other='3.1[2-9]' ;;
    *) other='3.11' ;;
esac
if python=$(find_python "$other"); then
    venv=$(venv_for "$python")
    versions "$venv"
    covering=()
    for path in "${COVERING[@]}"; do
        [ -e "$path" ] && covering+=("$path")
    done
    # As users' programs are compiled.
    step "tests on the other line of JAX" run_pytest "$venv" 0 -m "$marks" "${covering[@]}"
else
    say "NOT RUN: the other line of JAX, for no Python $other with venv runs here"
fi
finish
