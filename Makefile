# `make` shows what there is. Everything runs in .venv, which `setup` makes from requirements.lock.
PROFILE ?= laptop
PYTHON ?= python3
PIPELINE := $(if $(filter laptop,$(PROFILE)),dvc.yaml,profiles/$(PROFILE)/dvc.yaml)
ifeq ($(wildcard $(PIPELINE)),)
$(error unknown profile '$(PROFILE)'; choose from laptop $(notdir $(wildcard profiles/*)))
endif
export PATH := $(CURDIR)/.venv/bin:$(PATH)
.DEFAULT_GOAL := help
.PHONY: help setup data reproduce readme verify figures report test test-long lint bench recipes licences profiles notebooks gpu clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:[^#]*## */\t/' | expand -t 12

setup: .venv/.installed  ## make the environment in .venv from requirements.lock

.venv/.installed: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; v = sys.version_info; \
	  sys.exit(0 if (3, 11, 5) <= v < (3, 14) else "Python 3.11.5 to 3.13 is needed, not %d.%d.%d: make PYTHON=..." % v[:3])'
	$(PYTHON) -m venv .venv
	pip install -q --disable-pip-version-check -r requirements.lock
	pip install -q --disable-pip-version-check --no-build-isolation --no-deps -e .
	touch $@

data: setup  ## fetch data/ from the store inside the repository
	dvc pull -q data.dvc

reproduce: setup  ## compute everything again: make reproduce [PROFILE=smoke]
	dvc pull -q data.dvc
	rm -rf build/$(PROFILE)/runs
	dvc repro -f $(PIPELINE)
	$(if $(filter laptop,$(PROFILE)),python -m ul readme --runs results/runs.md)

readme: setup  ## copy what the profiles found into README, and list what was run where
	python -m ul readme --runs results/runs.md

# /dev/null: without a folder find would walk the whole checkout.
verify: setup  ## compare DVC's cache and outputs with their checksums and name what is damaged
	find /dev/null $(wildcard .dvc/cache/files data build) -type f -exec chmod u+w {} + -exec touch {} +
	dvc status data.dvc $(PIPELINE)

figures: setup data  ## draw every notebook of a profile from its records, without training [PROFILE=smoke]
	python -m ul nb-clean notebooks build/$(PROFILE)/nb
	python -m ul redraw $(PIPELINE)

report: setup  ## results as one site, readable offline: make report [PROFILE=smoke] -> build/site/index.html
	python -m ul report --profile $(PROFILE) --out build/site

test: setup data  ## all tests, a smoke pipeline in a temporary clone among them; two files at a time
	python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

test-long: setup data  ## 10,000 damaged files a reader, the smoke pipeline twice and with two threads, the paper profile on a few real images; three files at a time, hours
	python -m pytest -q -n 3 --dist loadfile -m long

lint: setup  ## ruff on modules, tests and notebooks; mypy on the types of ul/; import-linter on its rooms
	ruff check .
	ruff format --check .
	mypy
	lint-imports

bench: setup data  ## speed of the main parts against plain references -> results/bench/
	python -m tests.bench
	python -m tests.bench_sal

recipes: setup data  ## reduced recipes beside published ones, once, on 500 images: an hour -> results/bench/
	python -m tests.recipes

licences: setup  ## bill of materials of requirements.lock with every licence -> results/bench/licences.csv
	python -m tests.licences

profiles:  ## copy dvc.yaml, edited at the top, into every profile's folder
	for folder in profiles/*; do cp dvc.yaml $$folder/; done

notebooks: setup  ## open Jupyter
	jupyter lab notebooks

PACK ?= runs.tar.xz
gpu: setup  ## work off the queue of a profile for 9 minutes and pack what is finished: make gpu PROFILE=cifar10 [JOBS=9]
	python -m ul queue $(dir $(PIPELINE))params.yaml --pack $(PACK) $(if $(JOBS),--jobs $(JOBS))

clean:  ## remove built files (build/ and logs/); keeps .venv, results/, data/ and what was fetched into build/data/
	rm -rf logs $(filter-out build/data,$(wildcard build/*))
