#!/usr/bin/env bash
# Other programs that read the DICOM that torchimpt writes, each in an environment of its own; prints what to export for the tests.
#   source <(.ci/peers.sh [FOLDER])
# What cannot be had is left out, and its tests are skipped with the reason. One that is there already is taken as it is.
set -uo pipefail
cd "$(dirname "$0")/.."
folder=$(realpath -m "${1:-.venv-peers}")
python=${PYTHON:-python3}

peer() { # NAME, what to import, the program, what it needs
  local name=$1 module=$2 program=$3 home=$folder/$1
  shift 3
  if ! "$home/bin/python" -c "import $module" > /dev/null 2>&1; then
    rm -rf "$home" && "$python" -m venv "$home" \
      && timeout 600 "$home/bin/python" -m pip install --quiet --no-compile "$@" > /dev/null 2>&1 \
      && timeout 600 "$home/bin/python" -m pip install --quiet --no-compile --no-deps "$program" > /dev/null 2>&1
  fi
  if "$home/bin/python" -c "import $module" > /dev/null 2>&1; then
    echo "export TORCHIMPT_${name^^}=$home/bin/python"
  else
    echo "$name cannot be installed: its tests are skipped" >&2
  fi
}

# without all that they ask for: OpenTPS alone would bring half a gigabyte that no reader of DICOM needs
peer dicompyler dicompylercore dicompyler-core==0.5.6 "pydicom<3" "numpy<2" matplotlib six shapely
peer pymchelper pymchelper.utils.radiotherapy.plan pymchelper==2.9.6 pydicom "numpy<3"
peer opentps opentps.core.io.dicomIO opentps-core==2.0.0 "pydicom>=3" "numpy<2" scipy matplotlib SimpleITK
