# make demo: see Kiln work. make test: prove it. Both start a local cluster, unless KUBECONFIG names one.
.PHONY: demo test test-all bench check fmt cluster cluster-down images install help

demo:         ## one build of each kind on a two-node cluster, with its result running
	@tests/demo
test:         ## everything: make check, and the end-to-end tests
	@tests/run all
test-all: test ## make test, and what takes long: the applications of examples/apps, ten thousand ImageBuilds, as many specs, a fuzzer, a demo that is broken off
	@tests/run long
bench:        ## measures it: a table and a plot, next to the bare buildctl
	@tests/bench/run
check:        ## what needs no cluster: style, scripts, lints, unit tests, licences, chart, docs
	@tests/run check
fmt:          ## puts Rust code into the project's style
	@cargo fmt --all
cluster:      ## starts the local cluster, with all that the tests need; . .cluster/env to use it
	@tests/cluster/up --for-tests
cluster-down: ## stops it and removes what it left on the machine
	@tests/cluster/down
images:       ## makes the images of operator and builder; with docker for a cluster that KUBECONFIG names
	@tests/images
install:      ## installs Kiln with its chart
	@tests/install
help:         ## says all this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-14s%s\n", $$1, $$2}' Makefile
