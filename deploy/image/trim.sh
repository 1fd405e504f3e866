#!/usr/bin/env bash
# Removes from a virtual environment what only building against it or testing it needs, and compiles the rest.
set -o errexit -o nounset -o pipefail
cd "$1"/lib/python3*/site-packages

rm -rf torch/include torch/share torch/test
# Test programs and protoc; torch starts torch_shm_manager when processes share tensors by files.
find torch/bin -mindepth 1 ! -name torch_shm_manager -delete
find . -type f \( -name '*.a' -o -name '*.h' -o -name '*.hpp' \) -delete
# Folders of this name are the projects' own tests, which nothing imports.
find networkx numpy sympy -depth -type d -name tests -exec rm -r {} +

# The root is read-only when pathlens runs, so that Python could not keep what it compiles. By hash and unchecked: builds that
# set all times alike would make files compiled by time look stale, and Python would compile them at every start.
find . -name __pycache__ -prune -exec rm -r {} +
# torch has a module that only Python 3.12 can read.
python3 -m compileall -q -j 0 -x '/py312_' --invalidation-mode unchecked-hash .
