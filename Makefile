# restore-rl: photographs → distortion dataset → reward model → RL-tuned restorers. `make help` lists the targets.

PYTHON ?= python3
RUN ?= runs/default
IMAGES ?= embedded
FACES ?= embedded
HELD_OUT ?= none
TASK ?= sr face
BENCH ?= dataset rm rl
PROCESSES ?= 1
# Threads that wait by spinning make two busy programs slow each other down many times over.
export OMP_WAIT_POLICY ?= PASSIVE

VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
# What a person gives, as one word that no shell takes apart. $(value …) is the text as it was typed: make itself expands
# nothing in it either. $(call given,OUT,restored): the variable OUT, or that default.
quoted = '$(subst ','\'',$(value $(1)))'
given = $(if $(value $(1)),$(call quoted,$(1)),$(2))
# make would expand a variable to hand it on to the recipes' environment.
unexport AGAINST RUN DATASET IMAGES FACES HELD_OUT TASK BENCH PROCESSES PYTHON CONFIG ARGS BASE_ARGS POOL_ARGS DATASET_ARGS
unexport RM_ARGS IN OUT LQ GT POLICY TRIPLES RESTORERS REPO REVISION
# The words in a variable such as ARGS: restore-rl takes them apart, with a shell's quotes but without a shell.
spread = $(if $(value $(1)),--words $(call quoted,$(1)))

RESTORE_RL := $(PY) -m rl_finetune.cli
# Not `accelerate launch`: without a GPU it starts one process, whatever it is asked for.
ON_CPU := $(if $(shell command -v nvidia-smi),,ACCELERATE_USE_CPU=1)
LAUNCH := $(if $(filter 1,$(value PROCESSES)),$(RESTORE_RL),$(ON_CPU) $(RESTORE_RL) launch $(call quoted,PROCESSES))
IN_RUN = $(call quoted,RUN)
IN_DATASET = $(call given,DATASET,datasets/"$$(basename -- $(call quoted,RUN))")
SOURCE = source.images=$(call quoted,IMAGES) source.faces=$(call quoted,FACES) source.held_out=$(call quoted,HELD_OUT)
# ARGS and CONFIG go to the stage that was asked for by name; BASE_ARGS, POOL_ARGS, DATASET_ARGS, RM_ARGS to the
# stages before it.
asked = $(filter $(1),$(MAKECMDGOALS))
config = $(if $(call asked,$(1)),$(call given,CONFIG,$(2)),$(2))
args = $(if $(call asked,$(1)),$(call spread,ARGS))
only = $(if $(filter-out $(2),$(value $(1))),$(error $(1) takes $(2), not $(filter-out $(2),$(value $(1)))),$(value $(1)))
TASKS := $(call only,TASK,sr face)
FIRST_TASK := $(firstword $(TASKS))
BENCHES := $(call only,BENCH,dataset rm rl)
# Every other stage needs the base policies of both tasks.
BASES := $(if $(call asked,base-policies),$(TASKS),sr face)
$(if $(and $(value CONFIG),$(call asked,base-policies train-rl),$(word 2,$(TASKS))),$(error CONFIG is for one task: add TASK=sr or TASK=face))
bench_config = $(call config,bench-$(1) $(if $(word 2,$(BENCHES)),,bench),$(2))

# A reward model that was downloaded, not trained here: it has a checkpoint, and no config of a training.
DOWNLOADED := $(shell cd $(IN_RUN)/reward_model 2>/dev/null && test -f checkpoint/config.json && test ! -f config.yaml && echo yes)

.DEFAULT_GOAL := help
.PHONY: help env base-policies base-sr base-face pool dataset browse bench bench-dataset bench-rm bench-rl train-rm train-rl report eval restore score eval-rm download-rm test lint
.NOTPARALLEL:

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /  \1\t/p' Makefile | expand -t 20
	@echo "Variables: IMAGES= FACES= (folder | hf:dataset_id | embedded)  HELD_OUT=part  RUN=runs/name  TASK=sr|face  CONFIG=file.yaml  ARGS='key=value …'"
	@echo "Fields of a stage: $(RESTORE_RL) <command> --help"

env: $(READY) ## create or refresh the environment in .venv

$(READY): pyproject.toml constraints.txt
	@$(call quoted,PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: Python 3.11 or later is needed; choose one with PYTHON=" >&2; exit 2; }
	$(call quoted,PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

base-policies: $(addprefix base-,$(BASES)) ## train the supervised restorers that RL starts from

base-sr base-face: base-%: env
	@$(LAUNCH) base-policies $(call config,base-policies,configs/base_$*.yaml) out=$(IN_RUN)/base_$* $(SOURCE) $(call spread,BASE_ARGS) $(call args,base-policies)

pool: env ## train the small feed-forward restorers whose artifacts the dataset also plants
	@$(LAUNCH) train-pool $(call config,pool,configs/pool.yaml) task=sr out=$(IN_RUN)/pool/sr $(SOURCE) $(call spread,POOL_ARGS) $(call args,pool)
	@$(LAUNCH) train-pool $(call config,pool,configs/pool.yaml) task=face out=$(IN_RUN)/pool/face $(SOURCE) $(call spread,POOL_ARGS) $(call args,pool)

dataset: base-policies pool ## plant restorers' artifacts into clean pictures
	@$(RESTORE_RL) dataset $(call config,dataset,configs/dataset.yaml) out=$(IN_DATASET) runs=$(IN_RUN) $(SOURCE) $(call spread,DATASET_ARGS) $(call args,dataset)

browse: env ## one HTML page of random samples of the dataset
	@$(RESTORE_RL) browse folder=$(IN_DATASET) $(call spread,ARGS)

bench: $(addprefix bench-,$(BENCHES)) ## time and memory by part, as tables and JSON: BENCH='dataset rm rl', any of them

bench-dataset: env
	@$(RESTORE_RL) bench-dataset $(call bench_config,dataset,configs/dataset.yaml) runs=$(IN_RUN) $(SOURCE) $(call spread,ARGS)

bench-rm: env
	@$(RESTORE_RL) bench-rm $(call bench_config,rm,configs/train_rm.yaml) dataset=$(IN_DATASET) $(call spread,ARGS)

bench-rl: env
	@$(RESTORE_RL) bench-rl $(call bench_config,rl,configs/train_rl_$(FIRST_TASK).yaml) base=$(IN_RUN)/base_$(FIRST_TASK) reward_model=$(IN_RUN)/reward_model/checkpoint $(SOURCE) $(call spread,ARGS)

train-rm: dataset ## train the reward model: a score, and a map of where the picture is broken
	@$(LAUNCH) train-rm $(call config,train-rm,configs/train_rm.yaml) out=$(IN_RUN)/reward_model dataset=$(IN_DATASET) $(call spread,RM_ARGS) $(call args,train-rm)

train-rl: $(if $(DOWNLOADED),base-policies,train-rm) $(addprefix rl-,$(TASKS)) report ## the main job: everything that is missing, then RL and the report

rl-sr rl-face: rl-%: env
	@$(LAUNCH) train-rl $(call config,train-rl $@,configs/train_rl_$*.yaml) out=$(IN_RUN)/rl_$* base=$(IN_RUN)/base_$* reward_model=$(IN_RUN)/reward_model/checkpoint $(SOURCE) $(call args,train-rl $@)

report: env ## one page with curves, before/after tables and pictures of a run
	@$(RESTORE_RL) report run=$(IN_RUN) dataset=$(IN_DATASET) $(call args,report)

eval: $(addprefix eval-,$(TASKS)) ## measure tuned policies again on held-out pictures: AGAINST=bicubic (or any restorer), ARGS='images=100 steps=20'

eval-sr eval-face: eval-%: env
	@$(RESTORE_RL) evaluate run=$(IN_RUN)/rl_$* $(if $(value AGAINST),against=$(call quoted,AGAINST)) $(call args,eval $@)

test: env ## run every test
	@ARGS=$(call quoted,ARGS) $(PY) -c 'import os, pytest, shlex, sys; sys.exit(pytest.main(shlex.split(os.environ["ARGS"])))'

lint: env ## check style
	@$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check .

restore: env ## restore a picture or a folder: IN= OUT=, with POLICY=, else RUN's tuned policy, else the shipped one; TASK=face
	@$(RESTORE_RL) restore in=$(call quoted,IN) out=$(call given,OUT,restored) policy=$(call quoted,POLICY) run=$(IN_RUN) task=$(FIRST_TASK) $(call spread,ARGS)

eval-rm: env ## measure the reward model: TRIPLES=folder of real triples, RESTORERS='[a.pth,b.pth]' it never met
	@$(RESTORE_RL) eval-rm $(call config,eval-rm,configs/eval_rm.yaml) checkpoint=$(IN_RUN)/reward_model/checkpoint dataset=$(IN_DATASET) $(if $(value TRIPLES),triples=$(call quoted,TRIPLES)) $(if $(value RESTORERS),restorers=$(call quoted,RESTORERS)) $(call spread,ARGS)

download-rm: env ## fetch a reward model from the Hugging Face Hub, for train-rl to use: REPO=user/name, REVISION=
	@$(RESTORE_RL) download-rm repo=$(call quoted,REPO) revision=$(call quoted,REVISION) out=$(call given,OUT,$(IN_RUN)/reward_model/checkpoint)

score: env ## score pictures and paint where they are broken: IN= OUT=, LQ= what they were restored from, GT= their truth; with RUN's reward model, else the shipped one
	@$(RESTORE_RL) score in=$(call quoted,IN) out=$(call given,OUT,scored) $(if $(value LQ),lq=$(call quoted,LQ)) $(if $(value GT),gt=$(call quoted,GT)) run=$(IN_RUN) $(call spread,ARGS)
