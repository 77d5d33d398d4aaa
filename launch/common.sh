# shellcheck shell=bash
# For the scripts beside this file: a Python that works, and a venv that is up to date.
# Needs nothing but bash and a Python >= 3.11 with venv.

say() { printf '%s\n' "jaxloop: $*" >&2; }

die() {
    say "error: $*"
    exit 1
}

# python_version COMMAND: prints "3.12", or why COMMAND will not do (then status 1).
# An interpreter that is on the PATH need not run, so it is run.
python_version() {
    local version
    command -v "$1" > /dev/null 2>&1 || {
        echo "is not there"
        return 1
    }
    version=$("$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2> /dev/null) || {
        echo "does not run"
        return 1
    }
    case $version in
        [012].* | 3.[0-9] | 3.10)
            echo "is Python $version, but 3.11 or newer is needed"
            return 1
            ;;
    esac
    "$1" -c 'import venv, ensurepip' > /dev/null 2>&1 || {
        echo "is Python $version without the venv module (Debian: apt install python$version-venv)"
        return 1
    }
    echo "$version"
}

# find_python [PATTERN]: prints the first interpreter whose version matches PATTERN (any
# by default), with each that was passed over on stderr. $JAXLOOP_PYTHON goes first.
find_python() {
    local pattern=${1:-*} candidate found
    local candidates=(python3 python3.14 python3.13 python3.12 python3.11)
    candidates+=("${PYENV_ROOT:-$HOME/.pyenv}"/versions/*/bin/python3)
    [ -z "${JAXLOOP_PYTHON:-}" ] || candidates=("$JAXLOOP_PYTHON" "${candidates[@]}")
    for candidate in "${candidates[@]}"; do
        if found=$(python_version "$candidate"); then
            # shellcheck disable=SC2254 # the pattern is meant to match as one
            case $found in
                $pattern)
                    command -v "$candidate"
                    return 0
                    ;;
            esac
        elif [ "$pattern" = "*" ] && [ "$found" != "is not there" ]; then
            say "passed over $candidate: it $found"
        fi
    done
    return 1
}

# ensure_venv FOLDER PYTHON EXTRAS: FOLDER is a venv with this tree installed in it.
# Quick when it is so already: a stamp holds what it was made from.
ensure_venv() {
    local folder=$1 python=$2 extras=$3 version stamp quiet=--quiet
    version=$("$python" -c 'import sys; print(sys.version)')
    stamp="$version extras=$extras root=$PWD
$(cksum setup.py)"
    if [ "$(cat "$folder/installed" 2> /dev/null)" = "$stamp" ]; then
        return 0
    fi
    if [ "$("$folder/bin/python" -c 'import sys, pip; print(sys.version)' 2> /dev/null)" \
        != "$version" ]; then
        say "making $folder with $python"
        "$python" -m venv --clear "$folder" || die "$python -m venv $folder failed"
    fi
    say "installing jaxloop${extras:+[$extras]} into $folder (the first time takes minutes)"
    [ -t 2 ] && quiet=--progress-bar=on
    "$folder/bin/python" -m pip install --disable-pip-version-check "$quiet" \
        --editable ".${extras:+[$extras]}" >&2 \
        || die "pip could not install jaxloop into $folder; its message is above." \
            "Is a package index within reach?"
    printf '%s\n' "$stamp" > "$folder/installed"
}

# has_tpu: whether a TPU of Google's is on the PCI bus (the ids are those jax looks for).
has_tpu() {
    local folder
    for folder in /sys/bus/pci/devices/*; do
        [ "$(cat "$folder/vendor" 2> /dev/null)" = 0x1ae0 ] || continue
        case $(cat "$folder/device" 2> /dev/null) in
            0x0027 | 0x0056 | 0x005e | 0x0062 | 0x0063 | 0x006f | 0x0076) return 0 ;;
        esac
    done
    return 1
}

# cuda_extra: prints which of our extras goes with the NVIDIA driver and the GPUs that are
# there, or why none does (then status 1). CUDA 13 wants driver 580 and GPUs of compute
# capability 7.5 (Turing) or newer, CUDA 12 driver 525.
cuda_extra() {
    local driver major capability capabilities extra=cuda13
    driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader | head -n 1)
    major=${driver%%.*}
    case $major in
        "" | *[!0-9]*)
            echo "nvidia-smi names no driver version: $driver"
            return 1
            ;;
    esac
    if [ "$major" -lt 525 ]; then
        echo "NVIDIA driver $driver is too old: CUDA 12 wants 525 or newer, CUDA 13 wants 580"
        return 1
    fi
    capabilities=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader)
    for capability in $capabilities; do
        case $capability in
            [1-6].* | 7.[0-4]) extra=cuda ;;
        esac
    done
    [ "$major" -ge 580 ] || extra=cuda
    echo "$extra"
}

# first_numbers N: prints 0,1,...,N-1.
first_numbers() {
    local i numbers=0
    for ((i = 1; i < $1; i++)); do numbers+=,$i; done
    echo "$numbers"
}
