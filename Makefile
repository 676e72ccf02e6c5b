# restore-rl: photographs → distortion dataset → reward model → RL-tuned restorers. `make help` lists the targets.

PYTHON ?= python3
RUN ?= runs/default
DATASET ?= datasets/$(notdir $(RUN))
IMAGES ?= embedded
FACES ?= embedded
TASK ?= sr face
BENCH ?= dataset rm rl
PROCESSES ?= 1
# Threads that wait by spinning make two busy programs slow each other down many times over.
export OMP_WAIT_POLICY ?= PASSIVE

VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
SOURCE := source.images=$(IMAGES) source.faces=$(FACES)
# Not `accelerate launch`: without a GPU it starts one process, whatever it is asked for.
ON_CPU := $(if $(shell command -v nvidia-smi),,ACCELERATE_USE_CPU=1)
LAUNCH := $(if $(filter 1,$(PROCESSES)),$(PY) -m,$(ON_CPU) $(PY) -m shared.app.launch $(PROCESSES))
# ARGS and CONFIG go to the stage that was asked for by name; BASE_ARGS, POOL_ARGS, DATASET_ARGS, RM_ARGS to the
# stages before it.
asked = $(filter $(1),$(MAKECMDGOALS))
config = $(if $(and $(call asked,$(1)),$(CONFIG)),$(CONFIG),$(2))
args = $(if $(call asked,$(1)),$(ARGS))
# A finished stage is known by its command's words alone: seconds of imports less for each one.
stage = @$(PY) -m shared.runs.finished $(2) || $(1) $(2)

# A reward model that was downloaded, not trained here: it has a checkpoint, and no config of a training.
DOWNLOADED = $(and $(wildcard $(RUN)/reward_model/checkpoint/config.json),$(if $(wildcard $(RUN)/reward_model/config.yaml),,yes))

.DEFAULT_GOAL := help
.PHONY: help env base-policies pool dataset browse bench bench-dataset bench-rm bench-rl train-rm train-rl report eval restore score eval-rm download-rm test lint
.NOTPARALLEL:

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /  \1\t/p' $(MAKEFILE_LIST) | expand -t 20
	@echo "Variables: IMAGES= FACES= (folder | hf:dataset_id | embedded)  RUN=runs/name  TASK=sr|face  CONFIG=file.yaml  ARGS='key=value …'"

env: $(READY) ## create or refresh the environment in .venv

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: Python 3.11 or later is needed, $(PYTHON) is older; choose another with PYTHON=" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

base-policies: env ## train the supervised restorers that RL starts from
	$(call stage,$(LAUNCH) rl_finetune.pretrain,configs/base_sr.yaml out=$(RUN)/base_sr $(SOURCE) $(BASE_ARGS) $(call args,base-policies))
	$(call stage,$(LAUNCH) rl_finetune.pretrain,configs/base_face.yaml out=$(RUN)/base_face $(SOURCE) $(BASE_ARGS) $(call args,base-policies))

pool: env ## train the small feed-forward restorers whose artifacts the dataset also plants
	$(call stage,$(LAUNCH) data.train_pool,configs/pool.yaml task=sr out=$(RUN)/pool/sr $(SOURCE) $(POOL_ARGS) $(call args,pool))
	$(call stage,$(LAUNCH) data.train_pool,configs/pool.yaml task=face out=$(RUN)/pool/face $(SOURCE) $(POOL_ARGS) $(call args,pool))

dataset: base-policies pool ## plant restorers' artifacts into clean pictures
	$(call stage,$(PY) -m data.build,$(call config,dataset,configs/dataset.yaml) out=$(DATASET) runs=$(RUN) $(SOURCE) $(DATASET_ARGS) $(call args,dataset))

browse: env ## one HTML page of random samples of the dataset
	@$(PY) -m data.browse $(DATASET) $(ARGS)

bench: $(addprefix bench-,$(BENCH)) ## time and memory by part, as tables and JSON: BENCH='dataset rm rl', any of them

bench-dataset: env
	@$(PY) -m data.bench configs/dataset.yaml runs=$(RUN) $(SOURCE) $(ARGS)

bench-rm: env
	@$(PY) -m reward_model.bench configs/train_rm.yaml dataset=$(DATASET) $(ARGS)

bench-rl: env
	@$(PY) -m rl_finetune.bench configs/train_rl_$(firstword $(TASK)).yaml base=$(RUN)/base_$(firstword $(TASK)) reward_model=$(RUN)/reward_model/checkpoint $(SOURCE) $(ARGS)

train-rm: dataset ## train the reward model: a score, and a map of where the picture is broken
	$(call stage,$(LAUNCH) reward_model.train,$(call config,train-rm,configs/train_rm.yaml) out=$(RUN)/reward_model dataset=$(DATASET) $(RM_ARGS) $(call args,train-rm))

train-rl: $(if $(DOWNLOADED),base-policies,train-rm) $(addprefix rl-,$(TASK)) report ## the main job: everything that is missing, then RL and the report

rl-%: env
	$(call stage,$(LAUNCH) rl_finetune.train,$(call config,train-rl rl-$*,configs/train_rl_$*.yaml) out=$(RUN)/rl_$* base=$(RUN)/base_$* reward_model=$(RUN)/reward_model/checkpoint $(SOURCE) $(call args,train-rl rl-$*))

report: env ## one page with curves, before/after tables and pictures of a run
	@$(PY) -m rl_finetune.report $(RUN) $(DATASET)

eval: $(addprefix eval-,$(TASK)) ## measure tuned policies again on held-out pictures: ARGS='images=100 seed=1 steps=20'

eval-%: env
	@$(PY) -m rl_finetune.evaluate run=$(RUN)/rl_$* $(call args,eval)

test: env ## run every test
	@$(PY) -m pytest $(ARGS)

lint: env ## check style
	@$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check .

restore: env ## restore a picture or a folder: IN= OUT=, with POLICY= (an RL run's folder)
	@$(PY) -m rl_finetune.restore in=$(IN) out=$(or $(OUT),restored) policy=$(or $(POLICY),$(RUN)/rl_$(firstword $(TASK))) $(ARGS)

eval-rm: env ## measure the reward model: TRIPLES=folder of real triples, RESTORERS='[a.pth,b.pth]' it never met
	@$(PY) -m reward_model.evaluate configs/eval_rm.yaml checkpoint=$(RUN)/reward_model/checkpoint dataset=$(DATASET) $(if $(TRIPLES),triples=$(TRIPLES)) $(if $(RESTORERS),restorers=$(RESTORERS)) $(ARGS)

download-rm: env ## fetch a reward model from the Hugging Face Hub, for train-rl to use: REPO=user/name, REVISION=
	@$(PY) -m reward_model.download repo=$(REPO) revision=$(REVISION) out=$(or $(OUT),$(RUN)/reward_model/checkpoint)

score: env ## score pictures and paint where they are broken: IN= OUT=
	@$(PY) -m reward_model.score in=$(IN) out=$(or $(OUT),scored) checkpoint=$(RUN)/reward_model/checkpoint $(ARGS)
