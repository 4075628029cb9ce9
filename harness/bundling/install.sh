#!/usr/bin/env bash
# Installs the harness from this bundle, without a network, and prepares its suite.
# Usage: bash install.sh [VENV]    the virtual environment, made where it does not exist (default: venv beside this script)
# PYTHON names the Python to make it with.
set -euo pipefail
fail() { echo "install.sh: error: $*" >&2; exit 2; }

bundle=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
venv=${1:-$bundle/venv}; case $venv in /*) ;; *) venv=$PWD/$venv ;; esac
version='@PYTHON@' machine='@MACHINE@' glibc='@GLIBC@' left_out='@LEFT_OUT@'

# Nothing of the bundle is used before all of it is known to be whole.
if command -v sha256sum >/dev/null; then sum=(sha256sum); else sum=(shasum -a 256); fi
[ -f "$bundle/SHA256SUMS" ] && [ "$(grep -c . "$bundle/SHA256SUMS")" = '@FILES@' ] ||
  fail "$bundle: the bundle is damaged (SHA256SUMS is not whole); copy it again"
damaged=$(cd "$bundle" && { LC_ALL=C "${sum[@]}" -c SHA256SUMS 2>/dev/null || true; } | grep -v ': OK$' | sed 's/: FAILED.*//' || true)
[ -z "$damaged" ] || fail "$bundle: the bundle is damaged ($(grep -c . <<<"$damaged") of @FILES@ files, such as" \
  "$(head -n 1 <<<"$damaged"), are missing or have another SHA-256); copy it again"

fits() { "$1" -c "import platform, sys; sys.exit((f'{sys.version_info[0]}.{sys.version_info[1]}', platform.machine()) != ('$version', '$machine'))" 2>/dev/null; }
if [ -x "$venv/bin/python" ]; then
  fits "$venv/bin/python" || fail "$venv: is no environment of Python $version on $machine, which this bundle is for"
else
  python=
  for candidate in ${PYTHON:+"$PYTHON"} "python$version" python3 python; do
    if command -v "$candidate" >/dev/null && fits "$candidate"; then python=$candidate; break; fi
  done
  [ -n "$python" ] || fail "this bundle is for Python $version on $machine, and no such Python is found; load one, or" \
    "name it: PYTHON=/path/to/python$version bash install.sh"
  site=(); [ -z "$left_out" ] || site=(--system-site-packages)
  "$python" -m venv ${site[@]+"${site[@]}"} "$venv" >&2 ||
    fail "$venv: no virtual environment can be made there with $python (see above); name another folder or Python"
fi
python=$venv/bin/python

"$python" - "$glibc" <<'P' || fail "this bundle needs glibc $glibc or newer, and this machine's is older; make one with --platform manylinux_2_N_$machine, where N is that of 'ldd --version'"
import platform, sys
name, found = platform.libc_ver()
asked = sys.argv[1]
number = lambda text: [int(part) for part in text.split(".")]
sys.exit(bool(asked and name == "glibc" and number(found) < number(asked)))
P
for package in $left_out; do
  "$python" -c "import importlib.metadata; importlib.metadata.version('$package')" 2>/dev/null ||
    fail "this bundle leaves out $package, which $python does not have; load the module that has it, give the" \
      "environment that has it (bash install.sh VENV), or make the bundle without --without $package"
done

for name in $(compgen -e | grep '^PIP_' || true); do unset "$name"; done
export PIP_CONFIG_FILE=/dev/null  # an index or constraints of this machine have no say
"$python" -m pip install --quiet --no-index --no-input --disable-pip-version-check \
  --find-links "$bundle/wheels" --requirement "$bundle/requirements.txt" >&2 ||
  fail "$venv: pip could not install the bundle (see above)"

export HARNESS_CACHE="$bundle/cache" HF_HUB_OFFLINE=1
"$venv/bin/harness" prepare --offline @ARGUMENTS@ ||
  fail "the suite could not be prepared from $HARNESS_CACHE (see above)"

enter="export PATH='$venv/bin':\"\$PATH\""; [ ! -f "$venv/bin/activate" ] || enter="source '$venv/bin/activate'"
cat <<P

installed in $venv; to run:

  $enter
  export HARNESS_CACHE='$HARNESS_CACHE' HF_HUB_OFFLINE=1
  harness run --offline @SHOWN@
P
