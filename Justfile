# The door to everything: "just" lists what there is. On a fresh machine, "just test" makes whatever it needs.

set shell := ["bash", "-euo", "pipefail", "-c"]

# The profile of the binary in images: "fast" for tests, "release" for releases.
export PROFILE := env("PROFILE", "fast")

# List the recipes.
default:
    @just --list --unsorted

# Format the code.
fmt:
    cargo fmt

# Check formatting, and let no warning pass.
lint:
    cargo fmt --check
    cargo clippy --locked --all-targets -- -D warnings
    cargo clippy --locked --features e2e --test e2e -- -D warnings
    cargo clippy --locked --features bench --lib --benches -- -D warnings

# Run the tests that need no cluster.
unit *args:
    e2e/tools.sh nextest
    eval "$(e2e/tools.sh env)" && cargo nextest run --locked --lib --bins {{ args }}
    cargo test --locked --quiet --doc

# Compare the decisions with those of Cedar. Its build has other features of shared crates, so it is one of its own.
oracle *args:
    e2e/tools.sh nextest
    eval "$(e2e/tools.sh env)" && cargo nextest run --locked --features bench --lib -E 'test(authz::model::cedar)' {{ args }}

# Write what is generated from the code: crds/, manifests/ and the chart's CRDs.
generate:
    cargo run --locked --quiet --bin portcullis -- generate --out .
    PATH="$(e2e/kind/cluster path):$PATH" charts/render.sh

# Fail when what is generated differs from what is in the tree.
check-generated:
    #!/usr/bin/env bash
    set -euo pipefail
    fresh=$(mktemp -d)
    trap 'rm -rf "$fresh"' EXIT
    cargo run --locked --quiet --bin portcullis -- generate --out "$fresh"
    stale=0
    while read -r file; do
      diff -u --label "$file" --label "$file (generated)" "$file" "$fresh/$file" 2>&1 || stale=1
    done < <(cd "$fresh" && find . -type f | sed 's|^\./||' | sort)
    # These folders hold nothing else, so a file that is no longer generated is stale too.
    for folder in crds charts/portcullis/templates/crds; do
      if [ -d "$fresh/$folder" ] && diff -rq "$folder" "$fresh/$folder" | grep '^Only in'; then stale=1; fi
    done
    if [ "$stale" != 0 ]; then
      echo 'generated files are out of date; run "just generate"' >&2
      exit 1
    fi
    PATH="$(e2e/kind/cluster path):$PATH" charts/render.sh --check

# Build the container image localhost/portcullis:TAG. PROFILE=release builds what is shipped: at most 25 MiB.
image tag="dev":
    e2e/image.sh {{ tag }}

# Make the cluster NAME, or reuse it when it is healthy.
cluster-up name="portcullis-test" *args:
    e2e/kind/cluster up {{ name }} {{ args }}

# Delete the cluster NAME.
cluster-down name="portcullis-test":
    e2e/kind/cluster down {{ name }}

# Bring the image of "just image" onto the nodes of cluster NAME.
cluster-load name="portcullis-test" tag="dev":
    e2e/kind/cluster load {{ name }} localhost/portcullis:{{ tag }}

# Bring the image of "just image" onto cluster NAME and install or upgrade the chart there, as the tests want it.
install name="portcullis-test":
    e2e/install.sh {{ name }} --values e2e/values.yaml

# Run the end-to-end tests (or those that match) on the newest build, on a cluster that is kept for the next time.
e2e *args: (cluster-up "portcullis-test") image (install "portcullis-test")
    @{{ just_executable() }} e2e-only {{ args }}

# Run the end-to-end tests on what is on the cluster already.
e2e-only *args:
    #!/usr/bin/env bash
    set -euo pipefail
    e2e/tools.sh all
    eval "$(e2e/tools.sh env)"
    export KUBECONFIG=$(e2e/kind/cluster kubeconfig portcullis-test)
    export PORTCULLIS_E2E_CLUSTER=portcullis-test
    cargo nextest run --locked --features e2e --test e2e --profile e2e {{ args }}

# Everything, from a fresh machine: tools, lint, unit tests, generated files, cluster, image, end-to-end tests.
test:
    #!/usr/bin/env bash
    set -uo pipefail
    summary=() status=0
    just() { {{ just_executable() }} "$@"; }
    run() {
      local name=$1 began=$SECONDS
      shift
      if [ "$status" != 0 ]; then
        summary+=("  skipped  $name")
        return
      fi
      echo "==> $name: $*" >&2
      if "$@"; then
        summary+=("  ok       $name ($((SECONDS - began)) s)")
      else
        status=1
        summary+=("  FAILED   $name ($((SECONDS - began)) s): $*")
      fi
    }
    run "tools" e2e/tools.sh all
    run "lint" just lint
    run "unit tests" just unit
    run "second oracle" just oracle
    run "generated files" just check-generated
    run "cluster" just cluster-up portcullis-test
    run "image" just image
    run "install" just install portcullis-test
    run "end-to-end tests" just e2e-only
    echo >&2
    printf '%s\n' "just test, $SECONDS s:" "${summary[@]}" >&2
    exit "$status"

# Bring up a cluster with Portcullis, a server and two keys, and make a call.
up:
    e2e/up.sh

# Take down what "just up" made.
down:
    e2e/down.sh

# Measure.
bench *args:
    e2e/tools.sh all
    eval "$(e2e/tools.sh env)" && e2e/bench.sh {{ args }}

# Delete all our clusters, stop the docker daemon that we started, and remove the build cache.
purge:
    e2e/kind/cluster purge --cache
