# All programs of Weir in one image; the command chooses.
#
#   docker build -t weir .
#   docker build -t weir --build-arg BUILD_IMAGE=my-rust --build-arg BASE_IMAGE=my-debian .
#
# BUILD_IMAGE needs Rust as in rust-toolchain.toml, a C and C++ compiler, make, pkg-config and OpenSSL's headers;
# what apt-get can bring is brought when it is missing. BASE_IMAGE needs glibc as new as BUILD_IMAGE's.
ARG BUILD_IMAGE=rust:1.95-bookworm
ARG BASE_IMAGE=debian:bookworm-slim

FROM ${BUILD_IMAGE} AS build
RUN if ! command -v c++ >/dev/null || ! command -v pkg-config >/dev/null || ! pkg-config --exists openssl; then \
        apt-get update \
        && apt-get install --yes --no-install-recommends build-essential pkg-config libssl-dev \
        && rm -rf /var/lib/apt/lists/*; \
    fi
WORKDIR /build
COPY . .
# Packages are named one by one, so that features which only tests and benchmarks ask for stay out.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/build/target \
    cargo build --release --locked --bins \
        -p weir-ingest -p weir-chunk -p weir-embed -p weir-index -p weir-generate -p weir-eval \
        -p weir-retry -p weir \
    && mkdir /programs \
    && for program in weir-ingest weir-chunk weir-embed weir-index weir-generate weir-eval weir-retry weir; do \
           cp "target/release/$program" /programs/; \
       done

FROM ${BASE_IMAGE}
# librdkafka speaks TLS through OpenSSL; everything else is in the programs.
RUN if ! ldconfig -p | grep -q 'libssl\.so\.3' || [ ! -e /etc/ssl/certs/ca-certificates.crt ]; then \
        apt-get update \
        && apt-get install --yes --no-install-recommends libssl3 zlib1g ca-certificates \
        && rm -rf /var/lib/apt/lists/*; \
    fi
RUN useradd --system --uid 10001 --home-dir /var/lib/weir --create-home weir \
    && mkdir -p /var/lib/weir/models /var/lib/weir/documents /var/lib/weir/state \
    && chown -R weir /var/lib/weir
COPY --from=build /programs/ /usr/local/bin/
WORKDIR /var/lib/weir
USER weir
ENV WEIR_TELEMETRY__LOG_FORMAT=json \
    WEIR_MODEL__CACHE=/var/lib/weir/models \
    WEIR_RUNNER__STATE_DIR=/var/lib/weir/state \
    WEIR_DATA=/var/lib/weir/data
CMD ["weir", "--help"]
