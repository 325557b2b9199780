#!/usr/bin/env bash
# Installs what the tests need on Debian and Ubuntu, then passes every test on two software GPUs:
# Mesa's lavapipe, and SwiftShader, which Debian's chromium carries as a Vulkan driver. No GPU is needed.
# Run as root or with sudo; a second run installs nothing. Exit code 1: something failed. 2: it could not start.
set -euo pipefail
cd "$(dirname "$0")/.."

# ldconfig is there.
export PATH="$PATH:/usr/sbin:/sbin"
# lavapipe before Mesa 24 lacks what wgpu asks for.
readonly MESA_NEEDED=24
readonly SWIFTSHADER=/usr/lib/chromium/vk_swiftshader_icd.json
# The op tests: every kernel on a device.
readonly DEVICE_TESTS=(--test ops)

say() { echo "test.sh: $*" >&2; }
stop() { say "$*"; exit 2; }

lavapipe() { # Path of lavapipe's driver file. Some releases put the architecture into its name.
    local file
    for file in /usr/share/vulkan/icd.d/lvp_icd*.json /usr/local/share/vulkan/icd.d/lvp_icd*.json; do
        if [ -e "$file" ]; then echo "$file"; return; fi
    done
}

mesa_major() { # Major version of the installed Mesa driver, or 0.
    dpkg-query --show --showformat '${db:Status-Status} ${Version}\n' mesa-vulkan-drivers 2>/dev/null |
        sed -n 's/^installed \([0-9]*:\)\{0,1\}\([0-9]*\)\..*/\2/p' | grep . || echo 0
}

candidate_major() { # Major version of the Mesa driver that apt would install, or 0.
    apt-cache policy mesa-vulkan-drivers | sed -n 's/^ *Candidate: \([0-9]*:\)\{0,1\}\([0-9]*\)\..*/\2/p' | grep . || echo 0
}

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; return; fi
    command -v sudo >/dev/null || stop "installing packages needs root or sudo"
    sudo "$@"
}

apt_get() {
    as_root env DEBIAN_FRONTEND=noninteractive apt-get --quiet=2 --yes -o Acquire::Retries=3 -o Dpkg::Use-Pty=0 "$@" >/dev/null
}

has_backports() { # Whether apt knows the suite $1.
    apt-get indextargets --format '$(CODENAME)' 'Identifier: Packages' | grep -x "$1" >/dev/null
}

add_backports() { # From the mirror that serves this release's main archive.
    local release=$1 mirror
    mirror=$(apt-get indextargets --format '$(CODENAME) $(COMPONENT) $(REPO_URI)' 'Identifier: Packages' | sed -n "s/^$release main //p" | head -n 1)
    [ -n "$mirror" ] || stop "apt has no source for $release main, expected one: it gives the mirror of $release-backports"
    say "adding $release-backports from $mirror"
    echo "deb $mirror $release-backports main" | as_root tee "/etc/apt/sources.list.d/$release-backports.list" >/dev/null
    apt_get update
}

install_mesa() {
    local id release
    id=$(. /etc/os-release && echo "$ID")
    release=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
    if [ "$(candidate_major)" -ge "$MESA_NEEDED" ] || [ "$id" != debian ]; then
        apt_get install --no-install-recommends mesa-vulkan-drivers libvulkan1
    else
        has_backports "$release-backports" || add_backports "$release"
        apt_get install --no-install-recommends --target-release "$release-backports" mesa-vulkan-drivers libvulkan1
    fi
    [ "$(mesa_major)" -ge "$MESA_NEEDED" ] || say "Mesa is $(mesa_major), expected at least $MESA_NEEDED: the GPU tests may find no adapter"
}

install_missing() {
    local missing=()
    [ -n "$(lavapipe)" ] && [ "$(mesa_major)" -ge "$MESA_NEEDED" ] && ldconfig -p | grep 'libvulkan\.so\.1 ' >/dev/null || missing+=(mesa)
    command -v cc >/dev/null || missing+=(gcc libc6-dev)
    [ -e "$SWIFTSHADER" ] || missing+=(chromium)
    [ ${#missing[@]} -gt 0 ] || return 0
    command -v apt-get >/dev/null || stop "missing: ${missing[*]}; only Debian and Ubuntu are set up from here"
    say "installing ${missing[*]}"
    apt_get update
    local package
    for package in "${missing[@]}"; do
        case $package in
            mesa) install_mesa ;;
            # Ubuntu has no such package; there lavapipe alone is tested.
            chromium) if apt-cache show chromium >/dev/null 2>&1; then apt_get install --no-install-recommends chromium; fi ;;
            *) apt_get install --no-install-recommends "$package" ;;
        esac
    done
}

on_driver() { # Runs a command with one Vulkan driver. The second name is for loaders before 1.3.207.
    local driver=$1
    shift
    say "$* ($(basename "$driver" .json))"
    VK_DRIVER_FILES=$driver VK_ICD_FILENAMES=$driver NAEVUS_REQUIRE_GPU=1 "$@"
}

command -v cargo >/dev/null || stop "cargo is not there, expected Rust 1.95 or newer"
install_missing
lavapipe=$(lavapipe)
[ -n "$lavapipe" ] || stop "lavapipe's driver file is not in /usr/share/vulkan/icd.d, expected lvp_icd*.json from mesa-vulkan-drivers"

cargo fmt --check
cargo clippy --locked --all-targets -- -D warnings
on_driver "$lavapipe" cargo test --locked --doc
if [ -e "$SWIFTSHADER" ]; then
    on_driver "$SWIFTSHADER" cargo test --locked "${DEVICE_TESTS[@]}"
else
    say "SwiftShader is not there: its part is left out"
fi
# Last, so that the log ends with the closing line of the whole suite.
on_driver "$lavapipe" cargo test --locked --all-targets --no-fail-fast
