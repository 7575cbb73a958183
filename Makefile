# make demo | test | check | test-fast | faults | lab | docs | bench | figures | clean-cache. Each target does its own set-up in .venv; a second run does nothing twice.
# PYTHON=python3.12 chooses the interpreter of a new .venv; PIP_ARGS and PYTEST_ARGS are passed on.
PYTHON ?= python3
PIP_ARGS ?=
PYTEST_ARGS ?=
# tests in two processes, whole files each, so that what a file's tests share is made once
AT_ONCE := -n 2 --dist loadfile --no-loadscope-reorder

# runs start processes by the hundred; where the environment says so, each would compile the package anew
export PYTHONDONTWRITEBYTECODE :=

PY := .venv/bin/python
PIP := $(PY) -m pip install --disable-pip-version-check $(PIP_ARGS)

.PHONY: help demo test check test-fast faults lab docs bench figures clean-cache
.DELETE_ON_ERROR:

help:
	@echo "make demo         name every neuron of the microworld network (minutes after the set-up)"
	@echo "make test         run all tests"
	@echo "make check        look for mistakes and unformatted code, in seconds"
	@echo "make test-fast    the tests that take no time, for work in between"
	@echo "make faults       kill runs, damage files, set bad parameters: what was tried and what survived (ten minutes)"
	@echo "make lab          open JupyterLab on the repository"
	@echo "make docs         write the numbers of README and docs from the newest default runs"
	@echo "make bench        measure speed against literal implementations, into results/benchmarks"
	@echo "make figures      draw what README shows into figures/"
	@echo "make clean-cache  empty the cache of computed arrays"

demo: .venv/set-up-base
	$(PY) -m neuronym labelling
	$(PY) -m neuronym atlas

test: .venv/set-up-test
	$(PY) -m pytest -q $(AT_ONCE) $(PYTEST_ARGS)

check: .venv/set-up-test
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

test-fast: .venv/set-up-test
	$(PY) -m pytest -q $(AT_ONCE) -m "not slow" $(PYTEST_ARGS)

faults: .venv/set-up-test
	NEURONYM_FAULTS=docs/results/data/faults/faults.csv $(PY) -m pytest -q tests/faults $(PYTEST_ARGS)

lab: .venv/set-up-lab
	$(PY) -m jupyterlab --notebook-dir=.

docs: .venv/set-up-base
	$(PY) docs/write.py

bench: .venv/set-up-test
	@for script in benchmarks/*.py; do \
	  echo "== $$script"; \
	  $(PY) "$$script" --csv results/benchmarks/$$(basename "$$script" .py).csv || exit 1; \
	done

figures: .venv/set-up-base
	rm -rf results/*/figures-*
	$(PY) -m neuronym labelling -p run_name figures
	cp results/labelling/figures-*/figures/unit_cards.png figures/
	$(PY) -m neuronym second_order -p run_name figures
	for name in neurons ablations segmentation adversarial bridge sensitivity; do \
	  cp results/second_order/figures-*/figures/$$name.png figures/second_order_$$name.png || exit 1; \
	done
	$(PY) -m neuronym evaluation -p run_name figures
	for name in methods sanity names_layer4 names_fc weights_clip; do \
	  cp results/evaluation/figures-*/figures/$$name.png figures/evaluation_$$name.png || exit 1; \
	done
	$(PY) -m neuronym trust -p run_name figures
	cp results/trust/figures-*/figures/auroc_near.png figures/trust_auroc.png
	for name in reliability coverage; do \
	  cp results/trust/figures-*/figures/$$name.png figures/trust_$$name.png || exit 1; \
	done
	$(PY) -m neuronym describe_and_dissect -p run_name figures
	for name in strips_layer4 ablation_correlation ablation_named pruning; do \
	  cp results/describe_and_dissect/figures-*/figures/$$name.png figures/describe_$$name.png || exit 1; \
	done
	$(PY) -m neuronym visualisation -p run_name figures
	cp results/visualisation/figures-*/figures/pictures_layer4.png figures/visualisation.png
	for name in parametrisations accentuated; do \
	  cp results/visualisation/figures-*/figures/$$name.png figures/visualisation_$$name.png || exit 1; \
	done
	$(PY) -m neuronym sparse_features -p run_name figures
	cp results/sparse_features/figures-*/figures/named_at_equal_count.png figures/sparse_features.png
	$(PY) -m neuronym editing -p run_name figures
	for name in effects turned_off pruned redundant; do \
	  cp results/editing/figures-*/figures/$$name.png figures/editing_$$name.png || exit 1; \
	done
	$(PY) -m neuronym atlas -p run_name figures
	for view in grid:atlas unit/microworld%3Aresnet/layer4/81:atlas_unit compare?a=4:atlas_compare map:atlas_map; do \
	  chromium --headless --no-sandbox --hide-scrollbars --window-size=1400,900 --virtual-time-budget=5000 \
	    --screenshot=figures/$${view#*:}.png "file://$$PWD/$$(ls -d results/atlas/figures-*/site)/index.html#/$${view%:*}" || exit 1; \
	done
	$(PY) benchmarks/scale.py --figure figures/scoring_cost && rm figures/scoring_cost.pdf

clean-cache: .venv/set-up-base
	@$(PY) -c "from neuronym import cache; print(f'{cache.prune(max_bytes=0, partial=True) / 1e6:.1f} MB freed')"

# A stamp is newer than pyproject.toml when what it names is installed. The environment itself has no stamp: what
# counts is whether its pip answers, so a half-made .venv is repaired and one made by hand is used as it is.
.venv/set-up-base: pyproject.toml
	@$(PY) -m pip --version >/dev/null 2>&1 || { \
	  $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	    echo "Neuronym needs Python >= 3.11, '$(PYTHON)' is $$($(PYTHON) --version 2>&1); say which: make PYTHON=python3.12 ..." >&2; exit 1; }; \
	  echo "making .venv"; $(PYTHON) -m venv .venv; }
	@echo "installing what pyproject.toml asks for (several GB with a fresh torch)"
	$(PIP) -e .
	@touch $@

.venv/set-up-test: .venv/set-up-base
	$(PIP) -e '.[test,real,workflow]'
	@touch $@

.venv/set-up-lab: .venv/set-up-base
	$(PIP) -e '.[lab,real]'
	@touch $@
