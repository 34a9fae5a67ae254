# Needs Python >= 3.11 and make, nothing else.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest
PIP := $(BIN)/pip install --disable-pip-version-check --quiet --constraint constraints.txt

QUICKSTART_DATA := runs/quickstart/data
QUICKSTART_ARTIFACT := router_artifacts/quickstart
SCREENS := runs/screens
ADAPTERS := calendar,claim-window,provider-select,chandra-ocr

.PHONY: quickstart label-demo compare test lint reference docs notebooks clean

quickstart: $(VENV)/.train  ## Draw a simulated workload, train on it, route a text and a picture.
	$(BIN)/router-train simulate $(QUICKSTART_DATA) --rows 3000 --seed 0
	$(BIN)/router-train run configs/quickstart.yml
	$(BIN)/model-router route --artifact $(QUICKSTART_ARTIFACT) "What is 17 + 25?"
	$(BIN)/model-router route --artifact $(QUICKSTART_ARTIFACT) \
		--image $(QUICKSTART_DATA)/example.png "How many circles are in the picture?"

label-demo: $(VENV)/.label  ## Label 300 simulated samples over HTTP, train on the labels, report.
	$(BIN)/router-train simulate runs/label-demo/data --rows 300 --unlabelled
	$(BIN)/model-router simulate configs/simulator.yml & server=$$!; \
	trap 'kill $$server' EXIT; \
	$(BIN)/router-train label configs/label-demo.yml --dry-run && \
	$(BIN)/router-train label configs/label-demo.yml
	$(BIN)/router-train audit configs/label-demo.yml --output runs/label-demo/audit --rows 40
	$(BIN)/router-train run configs/label-demo-train.yml

compare: $(VENV)/.train  ## Draw four kinds of screens, train three routers, set them side by side.
	rm -rf $(SCREENS)/routing_*
	$(BIN)/router-train draw-screens $(SCREENS)/drawn --rows 1200 --adapters $(ADAPTERS)
	$(BIN)/router-train generate-routing-data --output-dir $(SCREENS) \
		--calendar-dataset $(SCREENS)/drawn/calendar/train.jsonl \
		--claim-window-dataset $(SCREENS)/drawn/claim-window/train.jsonl \
		--provider-select-dataset $(SCREENS)/drawn/provider-select/train.jsonl \
		--chandra-ocr-dataset $(SCREENS)/drawn/chandra-ocr/train.jsonl
	$(BIN)/router-train compare configs/screens.yml configs/screens-mlp.yml \
		configs/screens-xgboost.yml --data $(SCREENS)/routing_*

# Some tests kill servers and count what is left. What fails beside other tests runs once more
# by itself, so that a machine's pause is told from a defect; what fails twice fails the gate.
test: $(VENV)/.dev lint  ## Everything that must pass: style, types, import contracts, tests.
	$(PYTEST) -n 2 || { test $$? -eq 1 && $(PYTEST) --last-failed --last-failed-no-failures=none; }

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

reference: $(VENV)/.dev  ## Write the pages of commands and config keys from the code.
	$(BIN)/python docs/make_reference.py

docs: $(VENV)/.dev  ## Build the guides into site/.
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

notebooks: $(VENV)/.dev  ## Execute the notebooks from clean; keep only the chosen pictures.
	OMP_NUM_THREADS=1 $(BIN)/python notebooks/refresh.py

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.train: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) --editable '.[train,report]'
	@touch $@

$(VENV)/.label: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) --editable '.[train,report,label,service]'
	@touch $@

$(VENV)/.dev: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) --editable '.[clip,train,report,remote,minilm,label,service,otel,lora,onnx,openvino,export,tensorboard,ray,docs,notebooks,dev]'
	@touch $@

clean:  ## Remove what the targets made.
	rm -rf $(VENV) runs site router_artifacts/quickstart router_artifacts/label-demo
