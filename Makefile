# Every developer action. `make help` lists them; `make demo` and `make test` need only Python >= 3.11, a C compiler
# and make: they make a virtual environment in .venv, build the engine and run. What is up to date is not made again.
#
# A build mode has its own directory, build/lib-MODE (see setup.py), which PYTHONPATH chooses: nothing is installed, and
# the modes never meet. The tests run against `check` (optimised, with the engine's assertions), the demo and the
# benchmarks against `release`.

VENV   ?= .venv
PYTHON ?=
TESTS  ?= tests
ONLY   ?=
ARGS   ?=
JOBS   ?= $(shell jobs=$$(nproc 2>/dev/null || echo 1); [ $$jobs -gt 4 ] && jobs=4; echo $$jobs)

python  := $(VENV)/bin/python
in_mode  = PYTHONSAFEPATH=1 PYTHONPATH=$(CURDIR)/build/lib-$(1)
build    = PAGECACHE_MODE=$(1) $(python) setup.py -q build_mode
pytest  := $(python) -m pytest
parallel = $(if $(shell $(python) -c 'import xdist' 2>/dev/null || echo no),,-n $(JOBS) --dist loadfile --max-worker-restart=0)
in_bench = PYTHONSAFEPATH=1 PYTHONPATH=build/lib-release:$(CURDIR):tests
newest_tests = tests/adapters/ecosystem $(wildcard tests/adapters/test_fsspec_*.py) tests/adapters/test_ages.py tests/stores
libraries = $(shell $(CC) -print-file-name=$(1))

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_ROOT_USER_ACTION := ignore

.NOTPARALLEL:
.DEFAULT_GOAL := help
.PHONY: help demo test ecosystem ecosystem-newest newest docs stress bench bench-list peers anchors eviction build check debug portable annotate asan tsan stubs wheel aarch64 findings lint clean distclean

help: ## list the actions
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 26
	@echo "Variables: PYTHON (interpreter to use), TESTS (what pytest gets), JOBS (processes that test), ARGS (more arguments for demo, pytest, bench)"

demo: build ## read a real file through a cache smaller than it, and compare every byte
	$(call in_mode,release) $(python) -m pagecache demo $(ARGS)

test: check $(VENV)/.test ## run all the tests, with the engine's assertions on, in JOBS processes
	$(call in_mode,check) $(pytest) $(parallel) $(TESTS) $(ARGS)

ecosystem: $(VENV)/.test ## install the libraries that adapters and benchmarks are tested with, as far as they can be had
	@$(call requirements,ecosystem peers) > $(VENV)/.ecosystem.txt
	@$(python) -m pip install -q -r $(VENV)/.ecosystem.txt || \
	  while read -r one; do $(python) -m pip install -q "$$one" || echo "not installed: $$one"; done < $(VENV)/.ecosystem.txt

ecosystem-newest: ## test the adapters with the newest libraries, on Python 3.13 (or PYTHON), in build/newest
	@$(MAKE) -s VENV=build/newest PYTHON="$(or $(PYTHON),python3.13)" TESTS="$(TESTS)" newest

newest: check $(VENV)/.test
	@$(call requirements,ecosystem) > $(VENV)/.ecosystem.txt
	@$(python) -m pip install -q --upgrade --upgrade-strategy eager -r $(VENV)/.ecosystem.txt
	@$(python) -c 'import re, importlib.metadata as m; print(*(f"{n} {m.version(n)}" for n in re.findall(r"^[\w-]+", open("$(VENV)/.ecosystem.txt").read(), re.M)), sep=", ")'
	$(call in_mode,check) $(pytest) $(if $(filter-out tests,$(TESTS)),$(TESTS),$(newest_tests)) $(ARGS)

docs: $(VENV)/.docs ## build the documentation site into build/site; warnings are errors
	NO_MKDOCS_2_WARNING=1 $(python) -P -m mkdocs build --strict

stress: check $(VENV)/.test ## run all the tests for much longer
	PAGECACHE_STRESS=1 $(call in_mode,check) $(pytest) $(TESTS) $(ARGS)

bench: $(VENV)/.bench ## run the main benchmarks and write bench/results/; ONLY=NAME runs another, with its ARGS
	PAGECACHE_BENCH=1 $(call build,release)
	$(in_bench) $(python) -m bench $(or $(ONLY),hits.run) $(ARGS)

bench-list: ## list the benchmarks
	@$(in_bench) $(if $(wildcard $(python)),$(python),python3) -m bench

peers: ## compare cached reads with other ways of caching; ARGS=--write keeps the page
	@$(MAKE) bench ONLY=peers

anchors: ## compare the engine's lookups with other libraries' in C; ARGS=--write keeps the page
	@$(MAKE) bench ONLY=anchors

build: $(VENV)/.build ## build the release into build/lib-release
	@$(call build,release)

check: $(VENV)/.build ## build with assertions into build/lib-check
	@$(call build,check)

debug: $(VENV)/.build ## build for a debugger into build/lib-debug
	@$(call build,debug)

portable: $(VENV)/.test ## run the tests without anything that only Linux or x86 has
	@$(call build,portable)
	$(call in_mode,portable) $(pytest) $(TESTS) $(ARGS)

annotate: $(VENV)/.build ## write Cython's report on Python calls to build/cython-annotate
	@$(call build,annotate)
	@find build/cython-annotate -name '*.html'

asan: $(VENV)/.test ## run the tests under AddressSanitizer and UndefinedBehaviorSanitizer
	@$(call build,asan)
	LD_PRELOAD="$(call libraries,libasan.so) $(call libraries,libubsan.so)" PYTHONMALLOC=malloc \
	ASAN_OPTIONS=detect_leaks=0:exitcode=77 PAGECACHE_TEST_SECONDS=1200 $(call in_mode,asan) $(pytest) $(TESTS) $(ARGS)

tsan: $(VENV)/.test ## run the tests with threads under ThreadSanitizer
	@$(call build,tsan)
	rm -f build/tsan.*
	LD_PRELOAD=$(call libraries,libtsan.so) PYTHONMALLOC=malloc \
	TSAN_OPTIONS="exitcode=66 halt_on_error=0 detect_deadlocks=0 history_size=4 log_path=$(CURDIR)/build/tsan suppressions=$(CURDIR)/tests/support/tsan.supp" \
	PAGECACHE_TEST_SECONDS=1200 $(call in_mode,tsan) $(pytest) $(TESTS) -m stress $(ARGS) || { cat build/tsan.*; exit 1; }

eviction: $(VENV)/.eviction ## compare what policies miss with reference simulators; ARGS: directories of traces, or --synthetic 1
	@$(call build,release)
	$(in_bench) $(python) -m bench eviction $(ARGS)

stubs: check $(VENV)/.test ## compare _core.pyi with the module
	$(call in_mode,check) $(pytest) tests/engine/test_stubs.py

wheel: $(VENV)/.wheel ## build a manylinux wheel into dist/, and try it in an environment without a compiler
	rm -rf build/wheel
	$(python) -m build -q --wheel --no-isolation --outdir build/wheel
	PATH="$(abspath $(VENV))/bin:$$PATH" $(python) -m auditwheel -v repair -w dist build/wheel/*.whl 2> build/wheel/auditwheel.log
	$(python) tests/try_wheel.py

aarch64: check $(VENV)/.test ## run the engine's C level under emulation, built by a cross compiler
	$(call in_mode,check) $(pytest) tests/engine/test_portable.py -k aarch64 $(ARGS)

findings: ## run the scripts about surprises in other libraries (findings/); fails if one has changed
	@failed=0; for script in findings/*.sh; do echo "== $$script"; \
	  $$script || { failed=$$?; echo "== $$script: exit status $$failed: this has changed, or could not be tried"; }; done; exit $$failed

lint: $(VENV)/.test ## ruff and mypy
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

clean: ## remove what was built
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find pagecache tests bench -name __pycache__ -prune -exec rm -rf {} +

distclean: clean ## remove the virtual environment as well
	rm -rf $(VENV)

# $(1): extras, whose requirements are printed.
requirements = $(python) -c 'import sys, tomllib; \
	extras = tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]; \
	print(*(line for extra in sys.argv[1:] for line in extras[extra]), sep="\n")' $(1)

# The virtual environment holds what pyproject.toml requires, never pagecache itself.

$(VENV)/.made:
	@found="$(PYTHON)"; python=""; \
	for candidate in $${found:-python3.14 python3.13 python3.12 python3.11 python3 python}; do \
	  if $$candidate -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then python=$$candidate; break; fi; \
	done; \
	if [ -z "$$python" ]; then echo "No Python >= 3.11 found; name one with make PYTHON=/path/to/python3" >&2; exit 1; fi; \
	if ! $$python -c 'import os, sysconfig; open(os.path.join(sysconfig.get_path("include"), "Python.h"))' 2>/dev/null; then \
	  echo "$$python has no Python.h; install its headers (Debian: apt install python3-dev)" >&2; exit 1; fi; \
	echo "Making $(VENV) with $$($$python -V) ($$python)"; \
	$$python -m venv --clear $(VENV) || { \
	  echo "$$python cannot make a virtual environment; install its venv (Debian: apt install python3-venv)" >&2; exit 1; }
	@touch $@

# $(1): the extra whose requirements are installed besides those of the build and of running.
define install
	@$(python) -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb")); project = p["project"]; \
	print(*p["build-system"]["requires"], *project["dependencies"], *project["optional-dependencies"].get("$(1)", []), sep="\n")' \
	  > $@.txt
	@echo "Installing the requirements of $(@F:.%=%)"
	@$(python) -m pip install -q -r $@.txt || { echo "Once more"; sleep 3; $(python) -m pip install -q -r $@.txt; }
	@touch $@
endef

$(VENV)/.build: $(VENV)/.made pyproject.toml
	$(call install,)

$(VENV)/.test: $(VENV)/.build
	$(call install,test)

$(VENV)/.wheel: $(VENV)/.build
	$(call install,wheel)

$(VENV)/.docs: $(VENV)/.build
	$(call install,docs)

$(VENV)/.bench: $(VENV)/.build
	$(call install,bench)

$(VENV)/.eviction: $(VENV)/.build
	$(call install,eviction)
