#!/bin/sh
# Creates .venv with the exact versions in requirements/lock.txt and polytask itself, editable; quick when that is done.
set -eu
cd "$(dirname "$0")/.."

fail() {
    echo "polytask: error: $*" >&2
    exit 1
}

find_python() {
    for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
}

stamp=.venv/.installed-$(cat requirements/lock.txt pyproject.toml | cksum | cut -d ' ' -f 1)
[ -e "$stamp" ] && .venv/bin/python -c '' 2>/dev/null && exit

if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    python=$(find_python)
    [ -n "$python" ] || fail "no Python 3.11 or newer was found: apt-get install python3 python3-venv, or set PYTHON"
    "$python" -c 'import ensurepip, venv' 2>/dev/null || fail "$python cannot create environments: apt-get install python3-venv"
    echo "Creating .venv with $("$python" --version)."
    "$python" -m venv --clear .venv
fi
echo "Installing the versions in requirements/lock.txt into .venv (minutes, the first time)."
.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements/lock.txt
.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
rm -f .venv/.installed-*
touch "$stamp"
