#!/bin/sh
# Makes dist/durations.pyz: the whole package as one file that Python runs.
set -eu
rm -rf dist build
mkdir -p dist build
cp -r durations build/durations
python3 -m zipapp build --main durations.command:main --output dist/durations.pyz
