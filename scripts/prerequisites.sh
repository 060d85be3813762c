#!/usr/bin/env bash
# Checks what building and running Weir needs. As root on Debian or Ubuntu it installs what is missing, without
# asking; elsewhere it names what is missing and how to get it. Harmless to repeat; quick when all is there.
#
# Not needed, though often supposed: CMake (librdkafka builds by its own configure), protoc (tonic's stubs come with
# qdrant-client), zlib and zstd (built from source where they are missing).
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
toolchain=$(sed -n 's/^channel *= *"\(.*\)"/\1/p' "$root/rust-toolchain.toml")
export PATH="$HOME/.cargo/bin:$PATH"

missing=()     # what a person is told
packages=()    # what apt-get installs
apt=(apt-get --option Acquire::Retries=5)

have() { command -v "$1" >/dev/null 2>&1; }

need() { # need <what a person is told> <package...>
    missing+=("$1")
    shift
    packages+=("$@")
}

java_version() { java -version 2>&1 | sed -n 's/.*version "\([0-9]*\).*/\1/p' | head -1; }

look() {
    missing=()
    packages=()
    have cc || need "a C compiler (cc)" build-essential
    have c++ || need "a C++ compiler (c++)" build-essential
    have make || need "make" build-essential
    have pkg-config || need "pkg-config" pkg-config
    if have pkg-config && ! pkg-config --exists openssl; then
        need "the headers of OpenSSL (pkg-config finds no openssl)" libssl-dev
    elif ! have pkg-config; then
        packages+=(libssl-dev)
    fi
    # The JDK rather than the JRE: a test compiles a Java producer.
    if ! have java || ! have javac; then
        need "a JDK, version 17 or later (java, javac)" java
    elif [[ $(java_version) -lt 17 ]]; then
        need "Java 17 or later (found $(java_version))" java
    fi
    have mvn || need "Maven (mvn)" maven
    have python3 || need "Python 3 (python3)" python3
    # The model comes from a hub, or from PyPI through pip; clients of the tests live in virtual environments.
    if have python3 && ! python3 -c 'import pip, venv, ensurepip' >/dev/null 2>&1; then
        need "pip and venv of Python 3" python3-pip python3-venv
    elif ! have python3; then
        packages+=(python3-pip python3-venv)
    fi
    have curl || need "curl" curl ca-certificates
}

java_package() {
    local package
    for package in openjdk-17-jdk-headless openjdk-21-jdk-headless default-jdk-headless; do
        if apt-cache show "$package" >/dev/null 2>&1; then
            echo "$package"
            return
        fi
    done
    echo default-jdk-headless
}

install() {
    local wanted=() package
    echo "Installing what is missing: ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    "${apt[@]}" update
    for package in "${packages[@]}"; do
        [[ $package == java ]] && package=$(java_package)
        wanted+=("$package")
    done
    "${apt[@]}" install --yes --no-install-recommends "${wanted[@]}"
}

complain() {
    echo "Missing on this machine:" >&2
    printf '  - %s\n' "${missing[@]}" >&2
    echo "Get them:" >&2
    local names="${packages[*]/#java/openjdk-17-jdk-headless}"
    echo "  Debian, Ubuntu:  sudo apt-get install $names" >&2
    echo "  Fedora:          sudo dnf install gcc gcc-c++ make pkgconf-pkg-config openssl-devel java-21-openjdk-devel maven python3-pip curl" >&2
    echo "  macOS:           xcode-select --install; brew install openjdk@21 maven openssl@3 pkg-config python" >&2
    exit 1
}

# rustup by its own installer, a pinned version held against a pinned checksum. A download that broke off goes on.
rustup_version=1.28.2
install_rustup() {
    local machine sum folder file
    machine=$(uname -m)
    case $machine in
        x86_64) sum=20a06e644b0d9bd2fbdbfd52d42540bdde820ea7df86e92e533c073da0cdd43c ;;
        aarch64) sum=e3853c5a252fca15252d07cb23a1bdd9377a8c6f3efa01531109281ae47f841c ;;
        *) return 1 ;;
    esac
    folder=${XDG_CACHE_HOME:-$HOME/.cache}/weir/rustup-$rustup_version
    file=$folder/rustup-init-$machine
    mkdir -p "$folder"
    if ! sha256sum --check --status <<<"$sum  $file" 2>/dev/null; then
        echo "Downloading rustup $rustup_version"
        curl --fail --location --progress-bar --proto '=https' --tlsv1.2 --retry 5 --continue-at - --output "$file" \
            "https://static.rust-lang.org/rustup/archive/$rustup_version/$machine-unknown-linux-gnu/rustup-init" \
            || { echo "The download of rustup broke off; run this again and it goes on." >&2; exit 1; }
    fi
    if ! sha256sum --check --status <<<"$sum  $file"; then
        rm -f "$file"
        echo "What was downloaded as rustup is not it (its checksum differs), so it was removed. Run this again." >&2
        exit 1
    fi
    chmod +x "$file"
    "$file" -y --quiet --no-modify-path --default-toolchain none
}

install_toolchain() {
    echo "Installing Rust $toolchain through rustup"
    rustup toolchain install "$toolchain" --profile minimal --component rustfmt --component clippy
}

rust() {
    # `rustc` may be rustup's proxy, which takes rust-toolchain.toml into account only below the project.
    cd "$root"
    if have rustup; then
        if ! rustup run "$toolchain" cargo clippy --version >/dev/null 2>&1 \
            || ! rustup run "$toolchain" cargo fmt --version >/dev/null 2>&1; then
            install_toolchain
        fi
        return
    fi
    if have rustc && have cargo-clippy && have cargo-fmt \
        && [[ $(rustc --version | cut -d' ' -f2) == "$toolchain" ]]; then
        return
    fi
    if [[ $EUID -eq 0 ]] && have apt-get && install_rustup; then
        install_toolchain
        return
    fi
    echo "Missing on this machine:" >&2
    echo "  - Rust $toolchain with rustfmt and clippy" >&2
    echo "Get it through rustup, which then follows this project's rust-toolchain.toml by itself:" >&2
    echo "  https://rustup.rs  (curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh)" >&2
    exit 1
}

look
if ((${#missing[@]})); then
    if [[ $EUID -eq 0 ]] && have apt-get; then
        install
        look
    fi
    ((${#missing[@]})) && complain
fi
rust
