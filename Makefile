# restore-rl: photographs → distortion dataset → reward model → RL-tuned restorers. `make help` lists the targets.

PYTHON ?= python3
RUN ?= runs/default
IMAGES ?= embedded
FACES ?= embedded
HELD_OUT ?= none
TASK ?= sr face
FROM ?= shipped
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
unexport AGAINST RUN DATASET IMAGES FACES HELD_OUT IF_CHANGED TASK FROM BENCH PROCESSES PYTHON CONFIG ARGS BASE_ARGS POOL_ARGS DATASET_ARGS
unexport RM_ARGS IN OUT LQ GT POLICY TRIPLES RESTORERS REPO REVISION CAMPAIGN
unexport SHIPPED_IMAGES SHIPPED_FACES MANIFEST LICENCE STAGES
# The words in a variable such as ARGS: restore-rl takes them apart, with a shell's quotes but without a shell.
spread = $(if $(value $(1)),--words $(call quoted,$(1)))

RESTORE_RL := $(PY) -m rl_finetune.cli
# Not `accelerate launch`: without a GPU it starts one process, whatever it is asked for.
ON_CPU := $(if $(shell command -v nvidia-smi),,ACCELERATE_USE_CPU=1)
LAUNCH := $(if $(filter 1,$(value PROCESSES)),$(RESTORE_RL),$(ON_CPU) $(RESTORE_RL) launch $(call quoted,PROCESSES))
IN_RUN = $(call quoted,RUN)
IN_DATASET = $(call given,DATASET,datasets/"$$(basename -- $(call quoted,RUN))")
SOURCE = source.images=$(call quoted,IMAGES) source.faces=$(call quoted,FACES) source.held_out=$(call quoted,HELD_OUT) $(if $(value IF_CHANGED),source.if_changed=$(call quoted,IF_CHANGED))
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

# RL starts from the shipped base policies and reward model where all that it needs of them is there. With FROM=scratch it
# trains every stage itself. A run goes on as it began.
ORIGIN := $(call only,FROM,shipped scratch)
BEGUN_FROM_SHIPPED := $(shell cd $(IN_RUN) 2>/dev/null && grep -ls '^base: shipped:' rl_sr/config.yaml rl_face/config.yaml)
BEGUN_FROM_SCRATCH := $(shell cd $(IN_RUN) 2>/dev/null && ls -d base_sr base_face pool reward_model/config.yaml 2>/dev/null)
NEEDED := $(TASKS:%=base_%) $(if $(DOWNLOADED),,reward_model)
NOT_SHIPPED := $(filter-out $(patsubst checkpoints/%/config.json,%,$(wildcard checkpoints/*/config.json)),$(NEEDED))
SHIPPED_START := $(strip $(if $(filter shipped,$(ORIGIN)),$(if $(BEGUN_FROM_SHIPPED),_shipped,$(if $(BEGUN_FROM_SCRATCH)$(NOT_SHIPPED),,_shipped))))
$(if $(and $(filter scratch,$(ORIGIN)),$(BEGUN_FROM_SHIPPED),$(call asked,train-rl rl-sr rl-face)),$(error $(value RUN) was begun from the shipped checkpoints; leave FROM=scratch out to go on, or choose another folder with RUN=))
base_of = $(if $(SHIPPED_START),shipped:base_$(1),$(IN_RUN)/base_$(1))
REWARD_MODEL = $(if $(and $(SHIPPED_START),$(if $(DOWNLOADED),,yes)),shipped:reward_model,$(IN_RUN)/reward_model/checkpoint)

.DEFAULT_GOAL := help
.PHONY: help env base-policies base-sr base-face pool dataset browse bench bench-dataset bench-rm bench-rl train-rm train-rl report eval restore score demo eval-rm download-rm download-policy reproduce checkpoints test campaign kills docs lint
.NOTPARALLEL:

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /  \1\t/p' Makefile | expand -t 20
	@echo "Variables: IMAGES= FACES= (folder | hf:dataset_id | embedded)  HELD_OUT=part  IF_CHANGED=go_on  RUN=runs/name  TASK=sr|face  FROM=shipped|scratch  CONFIG=file.yaml  ARGS='key=value …'"
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
	@$(RESTORE_RL) bench-rl $(call bench_config,rl,configs/train_rl_$(FIRST_TASK)$(SHIPPED_START).yaml) base=$(call base_of,$(FIRST_TASK)) reward_model=$(REWARD_MODEL) $(SOURCE) $(call spread,ARGS)

train-rm: dataset ## train the reward model: a score, and a map of where the picture is broken
	@$(LAUNCH) train-rm $(call config,train-rm,configs/train_rm.yaml) out=$(IN_RUN)/reward_model dataset=$(IN_DATASET) $(call spread,RM_ARGS) $(call args,train-rm)

train-rl: $(if $(SHIPPED_START),,$(if $(DOWNLOADED),base-policies,train-rm)) $(addprefix rl-,$(TASKS)) report ## the main job: RL on the shipped policies and reward model, and the report; FROM=scratch: every stage before it too

rl-sr rl-face: rl-%: env
	@$(LAUNCH) train-rl $(call config,train-rl $@,configs/train_rl_$*$(SHIPPED_START).yaml) out=$(IN_RUN)/rl_$* base=$(call base_of,$*) reward_model=$(REWARD_MODEL) $(SOURCE) $(call args,train-rl $@)

report: env ## one page with curves, before/after tables and pictures of a run
	@$(RESTORE_RL) report run=$(IN_RUN) dataset=$(IN_DATASET) $(call args,report)

eval: $(addprefix eval-,$(TASKS)) ## measure tuned policies again on held-out pictures: AGAINST=bicubic (or any restorer), ARGS='images=100 steps=20'

eval-sr eval-face: eval-%: env
	@$(RESTORE_RL) evaluate run=$(IN_RUN)/rl_$* $(if $(value AGAINST),against=$(call quoted,AGAINST)) $(if $(value IF_CHANGED),if_changed=$(call quoted,IF_CHANGED)) $(call args,eval $@)

test: env ## run every test, in two processes; ARGS='-n 0' in one, ARGS=tests/data some of them
	@ARGS=$(call quoted,ARGS) $(PY) -c 'import os, pytest, shlex, sys; sys.exit(pytest.main(["-n", "2", "--dist", "loadfile", *shlex.split(os.environ.pop("ARGS"))]))'

campaign: env ## try tens of thousands of hostile inputs, minutes: CAMPAIGN=1 (of the whole), ARGS='--hypothesis-seed=1'
	@CAMPAIGN=$(call given,CAMPAIGN,1) ARGS=$(call quoted,ARGS) $(PY) -c 'import os, pytest, shlex, sys; sys.exit(pytest.main(["tests/campaigns", *shlex.split(os.environ["ARGS"])]))'

kills: env ## kill every stage at random moments, mostly inside writes, and compare its bytes: ARGS='kills=200 full=60 seed=0'
	@folder=$$(mktemp -d) && $(PY) -m tests.kills folder=$$folder kills=200 full=60 $(if $(value ARGS),--words $(call quoted,ARGS)); code=$$?; rm -rf "$$folder"; exit $$code

reproduce: env ## repeat a finished stage (or all of a run's) from its saved config and say what differs: RUN=runs/name/rl_sr OUT=
	@$(RESTORE_RL) reproduce run=$(IN_RUN) $(if $(value OUT),out=$(call quoted,OUT)) $(call spread,ARGS)

docs: env ## the pages of docs/ and of the docstrings, in site/
	@NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict --quiet && echo "site/index.html"

lint: env ## check style and types
	@$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check . && $(VENV)/bin/mypy

restore: env ## restore a picture or a folder: IN= OUT=, with POLICY=, else RUN's tuned policy, else the shipped one; TASK=face
	@$(RESTORE_RL) restore in=$(call quoted,IN) out=$(call given,OUT,restored) policy=$(call quoted,POLICY) run=$(IN_RUN) task=$(FIRST_TASK) $(call spread,ARGS)

demo: env ## before and after RL, score, map and best of N in the browser, on this machine alone: POLICY=, RUN=, TASK=face
	@$(RESTORE_RL) demo policy=$(call quoted,POLICY) run=$(IN_RUN) task=$(FIRST_TASK) $(call spread,ARGS)

eval-rm: env ## measure the reward model: TRIPLES=folder of real triples, RESTORERS='[a.pth,b.pth]' it never met
	@$(RESTORE_RL) eval-rm $(call config,eval-rm,configs/eval_rm.yaml) checkpoint=$(IN_RUN)/reward_model/checkpoint dataset=$(IN_DATASET) $(if $(value TRIPLES),triples=$(call quoted,TRIPLES)) $(if $(value RESTORERS),restorers=$(call quoted,RESTORERS)) $(call spread,ARGS)

download-rm: env ## fetch a reward model from the Hugging Face Hub, for train-rl to use: REPO=user/name, REVISION=
	@$(RESTORE_RL) download-rm repo=$(call quoted,REPO) revision=$(call quoted,REVISION) out=$(call given,OUT,$(IN_RUN)/reward_model/checkpoint)

download-policy: env ## fetch a policy from the Hugging Face Hub: REPO=user/name, REVISION=; then POLICY= or base= names its folder
	@$(RESTORE_RL) download-policy repo=$(call quoted,REPO) revision=$(call quoted,REVISION) out=$(call given,OUT,$(IN_RUN)/policy)

score: env ## score pictures and paint where they are broken: IN= OUT=, LQ= what they were restored from, GT= their truth; with RUN's reward model, else the shipped one
	@$(RESTORE_RL) score in=$(call quoted,IN) out=$(call given,OUT,scored) $(if $(value LQ),lq=$(call quoted,LQ)) $(if $(value GT),gt=$(call quoted,GT)) run=$(IN_RUN) $(call spread,ARGS)

# The run in which the shipped checkpoints are trained, whatever RUN is by default.
MAKING = $(if $(filter file,$(origin RUN)),'runs/shipped',$(IN_RUN))
MADE_OF = source.images=$(call quoted,SHIPPED_IMAGES) source.faces=$(call quoted,SHIPPED_FACES)
MAKING_DATASET = $(call given,DATASET,datasets/"$$(basename -- $(MAKING))")
needed = $(foreach name,$(1),$(if $(value $(name)),,$(error checkpoints are made with $(1): $(name)= is missing)))
ship = $(RESTORE_RL) ship run=$(MAKING)/$(1) out=checkpoints/$(1) licence=$(call quoted,LICENCE) manifest=$(call quoted,MANIFEST)

checkpoints: env ## train what ships, and ship it: SHIPPED_IMAGES= SHIPPED_FACES= (folders), MANIFEST=their licences.tsv, LICENCE=of the weights
	$(call needed,SHIPPED_IMAGES SHIPPED_FACES MANIFEST LICENCE)
	@$(LAUNCH) base-policies configs/base_sr_shipped.yaml out=$(MAKING)/base_sr $(MADE_OF) $(call spread,BASE_ARGS)
	@$(LAUNCH) base-policies configs/base_face_shipped.yaml out=$(MAKING)/base_face $(MADE_OF) $(call spread,BASE_ARGS)
	@$(RESTORE_RL) dataset configs/dataset_shipped.yaml out=$(MAKING_DATASET) runs=$(MAKING) $(MADE_OF) $(call spread,DATASET_ARGS)
	@$(LAUNCH) train-rm configs/train_rm_shipped.yaml out=$(MAKING)/reward_model dataset=$(MAKING_DATASET) $(call spread,RM_ARGS)
	@for task in sr face; do $(LAUNCH) train-rl configs/train_rl_$${task}_shipped.yaml out=$(MAKING)/rl_$$task base=$(MAKING)/base_$$task reward_model=$(MAKING)/reward_model/checkpoint $(MADE_OF) $(call spread,ARGS) || exit; done
	@$(call ship,base_sr)
	@$(call ship,base_face)
	@# One stage: all four would pass the limit on what ships. The shipped RL configs name the same.
	@$(call ship,reward_model) stages=$(call given,STAGES,3)
	@$(call ship,rl_sr)
	@$(call ship,rl_face)
