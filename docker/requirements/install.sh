#!/bin/sh
# Makes /opt/venv of the lock requirements/TARGET.txt, by hash. Packages that are published as sources only are built here first.
set -eu
python -m venv --without-pip /opt/venv
python -m venv /build
/build/bin/python -m pip install --quiet --only-binary=:all: --require-hashes -r /requirements/build.txt
/build/bin/python -m pip wheel --quiet --no-deps --no-build-isolation --require-hashes \
    -r "/requirements/$1.txt" -w /wheels
python -m pip --python /opt/venv/bin/python install --quiet --no-deps --no-index /wheels/*.whl
rm -r /wheels /build
