# What a developer runs. `.ci/run` runs the same, on a machine that may lack everything.

target := "x86_64-unknown-linux-musl"

export CARGO_TARGET_X86_64_UNKNOWN_LINUX_MUSL_RUSTFLAGS := `cargo fetch --locked --quiet && .build/remap`
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_RUSTFLAGS := CARGO_TARGET_X86_64_UNKNOWN_LINUX_MUSL_RUSTFLAGS

default: test

# The whole suite, against a real Envoy (fetched once)
test:
    cargo test

# A drain, shown live with a real Envoy and clients
demo:
    cargo run --release --example demo

# Formatting, clippy on everything, the documentation's links
lint:
    cargo fmt --check
    cargo clippy --all-targets -- --deny warnings
    cd tests/fuzz && cargo fmt --check
    cd tests/fuzz && cargo clippy --release -- --deny warnings
    RUSTDOCFLAGS="--deny warnings" cargo doc --no-deps --document-private-items

# The binary that ships, for x86_64-unknown-linux-musl or aarch64-unknown-linux-musl
static triple=target:
    rustup target add {{triple}}
    .build/auditable build --release --locked --target {{triple}}
    @ls -l target/{{triple}}/release/envoy-shutdown-manager

# Both of them, built twice: the same bytes
reproducible:
    rustup target add x86_64-unknown-linux-musl aarch64-unknown-linux-musl
    tests/reproducible

# The suite on the binary for aarch64, in emulation (needs qemu-user-static)
test-aarch64: (static "aarch64-unknown-linux-musl")
    RUST_TEST_THREADS=4 CROSS_RUNNER=qemu-aarch64-static \
        CROSS_PROGRAM=target/aarch64-unknown-linux-musl/release/envoy-shutdown-manager \
        cargo test --locked --test process -- --skip attacks::

# The image around that binary, without a registry, by buildah, podman or docker
image *options="": static
    .build/image target/{{target}}/release/envoy-shutdown-manager {{options}}

# The suite on the binary that ships, with its size, memory and timing
test-static:
    rustup target add {{target}}
    .build/auditable test --release --locked --target {{target}}

# (needs `cargo install cargo-deny`, as do the advisories)
# Where the crates come from, their licences and versions, and what no crate may be
deny:
    cargo deny --locked check --deny warnings bans licenses sources
    cargo deny --locked --manifest-path tests/fuzz/Cargo.toml check --deny warnings bans licenses sources

# What is known against the crates, and whether any has been taken back
advisories:
    cargo deny --locked check advisories

# What is in the binary that ships, as CycloneDX
sbom triple=target: (static triple)
    .build/sbom {{triple}} >target/{{triple}}/release/envoy-shutdown-manager.cdx.json
    @ls -l target/{{triple}}/release/envoy-shutdown-manager.cdx.json

# Built in two places with two CARGO_HOMEs, and compared; a tree that may not be released yet is built
# with `dry` after the version.
# All of a release, in target/release-VERSION
release version mode="":
    #!/usr/bin/env bash
    set -euo pipefail
    forbids() { echo "not to be released: $1" >&2; [ '{{mode}}' = dry ] || exit 1; }
    [ -z "$(git status --porcelain)" ] || forbids 'there are changes that are not committed, and would not be in it'
    grep -Fqx 'version = "{{version}}"' Cargo.toml || forbids 'the version in Cargo.toml is another'
    grep -Eqx '### {{version}}, [0-9]{4}-[0-9]{2}-[0-9]{2}' README.md || forbids 'the changes in the README have no "{{version}}, DATE"'
    [ -z "$(git tag --list 'v{{version}}')" ] || forbids 'it is tagged already'
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    unset CARGO_TARGET_DIR
    build() {
        git clone --quiet . "$1"
        (
            cd "$1"
            mkdir files
            for triple in x86_64-unknown-linux-musl aarch64-unknown-linux-musl; do
                '{{just_executable()}}' sbom "$triple"
                name=files/envoy-shutdown-manager-{{version}}-$triple
                cp "target/$triple/release/envoy-shutdown-manager" "$name"
                cp "target/$triple/release/envoy-shutdown-manager.cdx.json" "$name.cdx.json"
            done
        )
    }
    build "$work/one"
    CARGO_HOME=$work/home build "$work/another/place"
    diff -r "$work/one/files" "$work/another/place/files"
    rm -rf target/release-{{version}}
    cp -r "$work/one/files" target/release-{{version}}
    cd target/release-{{version}}
    sha256sum -- * >SHA256SUMS
    cat SHA256SUMS
    echo 'Built twice, and the same: target/release-{{version}}'
    [ '{{mode}}' = dry ] || echo "git tag --annotate --message 'envoy-shutdown-manager {{version}}' v{{version}} $(git rev-parse HEAD)"

# The binary that ships under attack, at full size
attack:
    rustup target add {{target}}
    ATTACK=full .build/auditable test --release --locked --target {{target}} --test process attacks:: -- --nocapture

# Probes, waiters, drains and hostile clients together, for ten minutes
soak seconds="600":
    rustup target add {{target}}
    SOAK={{seconds}} .build/auditable test --release --locked --target {{target}} --test process soak -- --ignored --nocapture

# The manager's threads in every interleaving, up to a few preemptions
model:
    RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR=target/loom cargo test --release --locked --lib manager::model -- --nocapture

# A million random schedules of a drain that nobody has run before, or those from a given BASE on
simulate:
    BASE=${BASE:-$(od -An -N4 -tu4 /dev/urandom | tr -d ' ')} SCHEDULES=${SCHEDULES:-1000000} \
        cargo test --release --locked --lib simulation -- --nocapture

# Bugs that are planted one at a time, and that the simulation and the model must find
planted:
    tests/planted

# The README's manifests, against Kubernetes' schemas (fetched once with pip)
manifests:
    tests/manifests/install
    cargo test --test process manifests

# Which changes no fast test notices, but those that .cargo/mutants.toml explains; takes half an
# hour (needs `cargo install cargo-mutants`)
mutants:
    cargo mutants --output target --timeout 60 -- --lib -- --skip simulation

# Every parser for so many seconds, from what earlier runs found (needs a C++ compiler)
fuzz seconds="30" *targets="":
    tests/fuzz/run {{seconds}} {{targets}}

fmt:
    cargo fmt
    cd tests/fuzz && cargo fmt
