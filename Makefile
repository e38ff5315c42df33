# make sweep: the first thing to try.  make test, make test-reference: what CI checks.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MINIMUM := .venv-minimum
AUDIT := .venv-audit
TESTS := python -m pytest --numprocesses 2 --dist worksteal --durations 25
# Threads that wait actively would take the core that the other half of the tests needs.
test test-long minimum: export OMP_WAIT_POLICY := PASSIVE

.PHONY: sweep test test-reference test-long minimum audit setup browser example docs site clean

sweep: setup
	$(BIN)/lora-exp experiment=rank_by_digit

test: setup browser
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/$(TESTS)

# The reference numbers on all of MNIST. Its base trains on two threads, which would take five times as long beside
# other tests.
test-reference: setup
	$(BIN)/python -m pytest --durations 5 -m 'long and not gpu' tests/test_reference.py

# Tests that are slow by nature: CONTRIBUTING.md lists them, each with the promise that it holds.
test-long: test-reference browser
	$(BIN)/$(TESTS) -m 'long and not gpu' --ignore tests/test_reference.py

# The tests with each library at the oldest version that pyproject.toml allows; torch and the test tools are those of
# .venv.
SITE := import sysconfig; print(sysconfig.get_path("purelib"))
minimum: setup browser
	$(BIN)/python -m venv --clear $(MINIMUM)
	$(BIN)/python tests/lower_bounds.py > $(MINIMUM)/pins.txt
	$(MINIMUM)/bin/python -m pip install --quiet --requirement $(MINIMUM)/pins.txt
	$(MINIMUM)/bin/python -m pip install --quiet --no-deps --editable .
	$(BIN)/python -c '$(SITE)' > "$$($(MINIMUM)/bin/python -c '$(SITE)')/others.pth"
	$(MINIMUM)/bin/$(TESTS) -W ignore::DeprecationWarning  # old libraries get these from newer dependencies

# Known vulnerabilities of the installed libraries; needs the network. docs/safety.md explains the output.
audit: setup
	$(BIN)/python -m venv $(AUDIT)
	$(AUDIT)/bin/python -m pip install --quiet pip-audit
	$(AUDIT)/bin/pip-audit --skip-editable --path "$$($(BIN)/python -c '$(SITE)')"

setup: $(VENV)/ready

# pip alone finds a CPU or CUDA build of torch that suits the platform.
$(VENV)/ready: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

# The tests open pages in Chromium; this installs Debian's.
browser:
	@command -v chromium > /dev/null || if [ "$$(id -u)" = 0 ]; then \
		apt-get update --quiet && apt-get install --yes --quiet --no-install-recommends chromium; \
	else echo "chromium is missing; install it: sudo apt-get install chromium"; exit 1; fi

# The example report, which is kept in git.
example: setup
	$(BIN)/lora-exp experiment=rank_by_digit device.portable=true report.name=example

# The pages that are written from the code; tests hold them to it.
docs: setup
	$(BIN)/python docs/reference.py
	$(BIN)/lora-exp glossary --markdown > docs/glossary.md

# docs/ as a site in site/; a link that leads nowhere is an error, in tests/test_site.py too.
site: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) $(MINIMUM) $(AUDIT) site cache runs mlflow.db mlartifacts .pytest_cache .mypy_cache .ruff_cache
