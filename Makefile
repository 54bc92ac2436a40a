# Every target is one step; the longer ones live in tools/. `make run` and `make test` install what
# they need. HEADWAY_JOBS is the number of parallel compile and test jobs (2).
SHELL := /bin/bash
.DEFAULT_GOAL := build
.NOTPARALLEL:
.PHONY: setup build run run-sample test test-cpp test-tsan test-asan test-fuzz test-python lint format format-check types \
        docs stubs stubs-check mutants mutants-apply fetch-deps wheel fresh fuzz soak bench bench-peers clean help

help:           ## say what there is
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:[^#]*##/\t/' | expand -t 14

setup:          ## install missing Debian packages and build/venv
	@tools/setup

build: setup    ## build the package and install it into build/venv
	@tools/build

run-sample: build   ## what `make run` shows: no refusal, and 95 % used
	@tools/run-sample

run:            ## the main job on a sample, against the simulator
	@tools/setup run
	@tools/build
	@tools/run-sample

# The cheap checks first. test-asan runs all that test-cpp does; fetch-deps, minutes of compiling
# other people's code, is for who changes cmake/ or tools/fetch-deps.
CHECKS := format-check lint types stubs-check docs
TESTS := test-tsan test-asan test-fuzz run-sample test-python mutants-apply wheel
test: build $(CHECKS) $(TESTS)  ## everything that CI runs
	@echo "make test: everything passed"

test-cpp: setup     ## the C++ tests
	@tools/test-cpp dev

test-tsan: setup    ## the C++ tests under ThreadSanitizer
	@tools/test-cpp thread

test-asan: setup    ## the C++ tests under AddressSanitizer and UndefinedBehaviorSanitizer
	@tools/test-cpp address

test-fuzz: setup    ## the parsers of headers, on 20,000 inputs each, always the same
	@tools/fuzz --runs 20000

test-python: setup  ## the Python tests on 3.10, 3.13 and the interpreter of build/venv
	@tools/test-python

lint: setup         ## ruff and clang-tidy
	@tools/lint

format: setup       ## format C++ and Python in place
	@tools/format

format-check: setup ## say what is not formatted
	@tools/format --check

docs: setup         ## the documentation as a site, in build/site
	@tools/docs

types: setup        ## mypy, strict
	@tools/types

stubs: build        ## write python/headway/_core.pyi anew from the built extension
	@build/venv/bin/python tools/stubs

stubs-check: build  ## see that the committed stub is the extension's
	@build/venv/bin/python tools/stubs --check

mutants-apply: setup  ## see that each patch of tests/mutants still applies
	@for patch in tests/mutants/*.patch; do \
	  git apply --check "$$patch" || { echo "$$patch does not apply"; exit 1; }; done
	@echo "==> mutants: all $$(ls tests/mutants/*.patch | wc -l) patches apply"

mutants: setup      ## apply each patch of tests/mutants and see its test fail
	@build/venv/bin/python tools/mutants

wheel: setup        ## a self-contained wheel, run where the system's libraries cannot be found
	@tools/wheel

fetch-deps: setup   ## build against Abseil and prometheus-cpp from source
	@tools/fetch-deps

fresh:              ## both commands of the README in a minimal Debian 12 (root)
	@tools/fresh

fuzz: setup         ## the parsers of headers, on any input, for HEADWAY_FUZZ_SECONDS (60) each
	@tools/fuzz

soak: build         ## minutes of load, and random tests with other seeds
	@tools/test-cpp-seeds
	@build/venv/bin/python -m pytest -m soak -s -o faulthandler_timeout=3600 tests

bench: build        ## every row of the goals with its floor
	@tools/bench

bench-peers: build  ## the same with other limiters beside it
	@tools/bench --peers

clean:              ## remove everything that was built
	rm -rf build
