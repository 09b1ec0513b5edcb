# The commands of this repository. Each target calls one script or one cargo command; the work is in there.

.PHONY: help demo test test-vm check bench soak mutants
.DEFAULT_GOAL := help

help: ## what there is
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

demo: ## a whole fleet on this machine: JOBS=file.json adds jobs, KEEP=1 leaves it running, OWNER=.. with GITHUB_TOKEN serves real repositories
	@deploy/demo

test: ## everything that must hold; installs what is missing, under an hour cold on two cores
	@tests/run all

test-vm: ## what needs control groups 2, AppArmor and systemd, in a Debian guest under emulation; slow, needs root, not part of test
	@tests/run test-vm

check: ## formatting, lints, generated code, house rules: no container needed
	@tests/run check

bench: ## measures and writes target/bench/results.json; ONLY=name measures one
	@tests/run bench

soak: ## many seeds of the simulation (SEED=first, SEEDS=how many), then SOAK_JOBS jobs through this host
	@tests/run soak

mutants: ## plants bugs one by one and shows that a test finds each
	@tests/run mutants
