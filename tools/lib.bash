# tools/lib.bash: what the scripts beside it share. Sourced, not run.
# shellcheck shell=bash
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$ROOT"
VENV=$ROOT/build/venv
JOBS=${HEADWAY_JOBS:-2}
PYTHON_VERSIONS=(3.10 3.11 3.12 3.13)

# Every step says in one line what it does.
say() { printf '\033[1m==> %s\033[0m\n' "$*" >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

as_root() {
  if [ "$(id -u)" -eq 0 ]; then
    "$@"
  elif command -v sudo >/dev/null; then
    sudo "$@"
  else
    die "this needs root or sudo: $*"
  fi
}

# Prints an interpreter of version $1 that really runs and can build an extension, or fails. A name
# on PATH may be a version manager's shim for something that is switched off, so each is tried; then
# pyenv's own folders are looked into.
find_python() {
  local version=$1 candidate found
  while IFS= read -r candidate; do
    [ -x "$candidate" ] || continue
    if found=$("$candidate" - "$version" 2>/dev/null <<'PY'
import ctypes, ensurepip, os, sys, sysconfig, venv
assert "%d.%d" % sys.version_info[:2] == sys.argv[1] and sys.implementation.name == "cpython"
assert os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h"))
# Not an environment's own, which may be the one that is about to be made anew.
print(sys._base_executable)
PY
    ); then
      printf '%s\n' "$found"
      return 0
    fi
  done < <(type -aP "python$version" || true
           printf '%s\n' "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$version".*/bin/"python$version")
  return 1
}

# The interpreter of build/venv: Debian 12's version where there is a choice.
find_main_python() {
  local version
  for version in 3.11 3.12 3.13 3.10; do
    find_python "$version" && return 0
  done
  die "no CPython 3.10 to 3.13 with venv and headers was found"
}

# make_venv DIR PYTHON REQUIREMENTS: makes the environment, or brings it to what the list says now.
make_venv() {
  local dir=$1 python=$2 requirements=$3 interpreter wanted
  interpreter="$python $("$python" --version)"
  wanted=$(echo "$requirements"; cat tools/requirements/*.txt)
  if [ "$(cat "$dir/.interpreter" 2>/dev/null)" != "$interpreter" ]; then
    rm -rf "$dir"
    "$python" -m venv "$dir"
    printf '%s\n' "$interpreter" >"$dir/.interpreter"
  fi
  if [ "$(cat "$dir/.requirements" 2>/dev/null)" != "$wanted" ]; then
    say "install $requirements into ${dir#"$ROOT/"} ($interpreter)"
    "$dir/bin/python" -m pip install --quiet --disable-pip-version-check -r "$requirements"
    printf '%s\n' "$wanted" >"$dir/.requirements"
  fi
}

# Compiles through ccache where it is there. Paths are taken relative to the tree, so that another
# clone of it profits too.
if command -v ccache >/dev/null; then
  export CMAKE_CXX_COMPILER_LAUNCHER=ccache CMAKE_C_COMPILER_LAUNCHER=ccache
  export CCACHE_BASEDIR=$ROOT CCACHE_NOHASHDIR=1
  export CCACHE_SLOPPINESS=pch_defines,time_macros  # or what uses a precompiled header is not kept
fi

# build_cpp VARIANT TARGET...: VARIANT is dev, thread, address, fuzz or bench; builds in build/VARIANT.
build_cpp() {
  local variant=$1 options=(-DHEADWAY_WERROR=ON)
  shift
  case $variant in
    dev) ;;
    # The same storms as without, five to fifteen times slower.
    thread | address) options+=("-DHEADWAY_SANITIZE=$variant" -DHEADWAY_TEST_TIMEOUT=600
                                -DHEADWAY_UNITY=ON) ;;
    # With Debian 12's clang, whose run-time tools/setup installs.
    fuzz) options+=(-DHEADWAY_BUILD_TESTS=OFF -DHEADWAY_SANITIZE=fuzzer
                    -DCMAKE_CXX_COMPILER=clang++-14) ;;
    bench) options+=(-DHEADWAY_BUILD_TESTS=OFF -DHEADWAY_BUILD_BENCHMARKS=ON) ;;
    *) die "no such variant: $variant" ;;
  esac
  say "C++ ($variant): configure and build $* in build/$variant"
  cmake -S . -B "build/$variant" -G Ninja -Wno-dev --log-level=NOTICE "${options[@]}"
  cmake --build "build/$variant" --parallel "$JOBS" --target "$@"
}

# install_package PYTHON: builds the extension for that interpreter and installs the package into
# its environment. Without build isolation, so that the build directory serves again and nothing is
# downloaded; `make wheel` takes the isolated way.
install_package() {
  local python=$1
  "$python" -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps \
    --force-reinstall --config-settings=cmake.define.HEADWAY_WERROR=ON .
}
