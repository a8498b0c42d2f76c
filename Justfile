# The commands of this project, each of them once. `just --list` shows them, and `just ci` runs all that
# must pass before a change lands.

target := "x86_64-unknown-linux-musl"
built := env("CARGO_TARGET_DIR", "target")
program := built / target / "release/envoy-shutdown-manager"
version := `sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml`

# In CI, Cargo.lock must be up to date. A developer's Cargo updates it.
locked := if env("CI", "") == "true" { "--locked" } else { "" }

# `just` alone: the whole suite
default: test

# The whole suite, with a real Envoy (downloaded once)
test:
    cargo test {{ locked }}

# A drain, shown live with a real Envoy and clients
demo:
    cargo run {{ locked }} --release --example demo

# The demo, interrupted: nothing of it may be left
demo-interrupted:
    cargo build {{ locked }} --release --bins --example demo
    tests/demo/interrupted {{ built }}/release/examples/demo

# Format the source code
fmt:
    cargo fmt
    cd tests/fuzz && cargo fmt

# Check formatting, clippy on everything, and the links of the documentation
lint:
    cargo fmt --check
    cargo clippy {{ locked }} --all-targets -- --deny warnings
    cd tests/fuzz && cargo fmt --check
    cd tests/fuzz && cargo clippy {{ locked }} --release -- --deny warnings
    RUSTDOCFLAGS="--deny warnings" cargo doc {{ locked }} --no-deps --document-private-items

# Check where the crates come from, their licences and versions (needs cargo-deny)
deny:
    cargo deny --locked check --deny warnings bans licenses sources
    cargo deny --locked --manifest-path tests/fuzz/Cargo.toml check --deny warnings bans licenses sources

# Check the crates for known advisories, and for versions taken back (needs cargo-deny)
advisories:
    cargo deny --locked check advisories

# The coordinator's threads in every interleaving, up to a few preemptions
model:
    RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR=target/loom \
        cargo test --locked --release --lib model:: -- --nocapture

# Random schedules of a drain: new ones, or those from the seed BASE on
simulate base=env("BASE", `od -An -N4 -tu4 /dev/urandom | tr -d ' '`) schedules=env("SCHEDULES", "1000000"):
    BASE={{ base }} SCHEDULES={{ schedules }} cargo test --locked --release --lib simulation -- --nocapture

# Bugs, planted one at a time, that the simulation and the model must find
planted:
    tests/planted

# Every parser for so many seconds, from what earlier runs found (needs a C++ compiler)
fuzz seconds="30" *targets="":
    tests/fuzz/run {{ seconds }} {{ targets }}

# Check which changes to the code no fast test notices: half an hour (needs cargo-mutants)
mutants:
    cargo mutants --output target --timeout 60 -- --lib -- --skip simulation

# The documentation's manifests, metrics and alerts, against Kubernetes' schemas and promtool (downloaded once)
manifests: validators
    cargo test {{ locked }} --test process -- manifests:: monitoring::

# What checks them, installed by pip and apt-get into target/manifests
[private]
validators:
    tests/manifests/install

# Build the binary that ships, for x86_64-unknown-linux-musl or aarch64-unknown-linux-musl
static triple=target: (_target triple)
    .build/auditable build --release --locked --target {{ triple }}
    @ls -l {{ built }}/{{ triple }}/release/envoy-shutdown-manager

_target triple=target:
    rustup target add {{ triple }}

# The whole suite on the binary that ships, with its size, memory and timing
test-static: _target
    .build/auditable test --release --locked --target {{ target }}
    sha256sum {{ program }} >{{ program }}.tested
    {{ quote(just_executable()) }} static
    @sha256sum --check {{ program }}.tested \
        || { echo 'the tests had another binary than ships: do dev-dependencies add features to its crates?'; exit 1; }

# The suite on the binary for aarch64, in emulation (needs qemu-user-static)
test-aarch64: (static "aarch64-unknown-linux-musl")
    RUST_TEST_THREADS=4 CROSS_RUNNER=qemu-aarch64-static \
        CROSS_PROGRAM={{ built }}/aarch64-unknown-linux-musl/release/envoy-shutdown-manager \
        cargo test --locked --test process

# The binary that ships under attack, at full size
attack: _target
    ATTACK=full .build/auditable test --release --locked --target {{ target }} --test alone attacks:: -- --nocapture

# Probes, hooks, drains and hostile clients together, for ten minutes
soak seconds="600": _target
    SOAK={{ seconds }} .build/auditable test --release --locked --target {{ target }} --test alone soak -- --ignored --nocapture

# A drain among probes that are not counted: for ten minutes it must not end, and then in time
race seconds="600": _target
    RACE={{ seconds }} .build/auditable test --release --locked --target {{ target }} --test alone race:: -- --ignored --nocapture

# Evictions with `--wait-for=requests`: how long they take, and what is lost in so many of them at each rate
requests drains="30": _target
    DRAINS={{ drains }} .build/auditable test --release --locked --target {{ target }} --test alone requests:: -- --ignored --nocapture

# Drains behind a balancer that goes on sending for up to 12 s, with delays that are fixed and that a quiet period ends
balancer: _target
    .build/auditable test --release --locked --target {{ target }} --test alone balancer:: -- --ignored --nocapture

# Idle connections that Envoy closes in a drain, and so many requests in the moment of their close
idle requests="10000": _target
    REQUESTS={{ requests }} .build/auditable test --release --locked --target {{ target }} --test alone idle:: -- --ignored --nocapture

# Build both binaries twice, in different places, and compare their bytes
reproducible: _target (_target "aarch64-unknown-linux-musl")
    tests/reproducible

# The bill of materials of the binary that ships, as CycloneDX, compared with Cargo's dependencies
sbom triple=target: (static triple)
    .build/sbom {{ triple }} >{{ built }}/{{ triple }}/release/envoy-shutdown-manager.cdx.json
    tests/sbom {{ built }}/{{ triple }}/release/envoy-shutdown-manager.cdx.json {{ triple }}
    @ls -l {{ built }}/{{ triple }}/release/envoy-shutdown-manager.cdx.json

# Build the image around the binary that ships (needs buildah, podman or docker)
image *options="": (static target)
    .build/image {{ program }} {{ options }}

# Run that image once (needs root, podman, buildah and runc)
test-image: image
    podman run --rm --runtime runc --ulimit nofile=1024:1024 --ulimit nproc=1024:1024 --network=host \
        localhost/envoy-shutdown-manager:{{ version }} --version

# Build all files of a release, in target/release-VERSION; with `dry` from a tree that cannot be released yet
release version mode="":
    JUST={{ quote(just_executable()) }} .build/release {{ version }} {{ mode }}

# All that must pass before a change lands (needs root, and what .ci/install installs)
ci: ci-source ci-tests ci-release

# Part of `ci`: the source code, and the tests without a process
ci-source: lint deny (fuzz "5") (simulate "0" "1000000") model planted

# Part of `ci`: the program as developers build it
ci-tests: validators test demo demo-interrupted

# Part of `ci`: the binaries that ship
ci-release: validators test-static sbom test-image test-aarch64 reproducible
