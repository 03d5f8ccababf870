#!/bin/bash
# Builds the image with buildah, as root, without a Docker engine: in a chroot, with the layers under $STORE.
#
#   DEVICE=cpu TAG=redraft:cpu WHEELS=FOLDER BASE=IMAGE EMBEDDED_TARGET=smollm2-135m deploy/image/build.sh
#
# Without BASE, the Debian that the Dockerfile names is made here by debootstrap, from where apt gets its packages.
set -euo pipefail
cd "$(dirname "$0")/../.."

DEVICE=${DEVICE:-cpu}
TAG=${TAG:-redraft:$DEVICE}
STORE=${STORE:-/var/lib/redraft-image}
RELEASE=bookworm

for program in buildah ${BASE:-debootstrap}; do
  [[ $program == "${BASE:-}" ]] || command -v "$program" >/dev/null || {
    echo "$program is missing: apt-get install --no-install-recommends buildah debootstrap" >&2
    exit 2
  }
done
if [[ $EUID -ne 0 ]]; then
  echo "building in a chroot needs root; with a Docker engine: docker build ." >&2
  exit 2
fi

export REGISTRY_AUTH_FILE=/dev/null
buildah() { command buildah --root "$STORE/layers" --runroot "$STORE/run" "$@"; }
secrets=$(mktemp -d)
trap 'rm -rf "$secrets"' EXIT

if [[ -z ${BASE:-} ]]; then
  BASE=localhost/debian:$RELEASE
  if ! buildah inspect --type image "$BASE" >/dev/null 2>&1; then
    mirror=$(apt-get indextargets --format '$(REPO_URI)' "Codename: $RELEASE" "Created-By: Packages" | head -n 1)
    debootstrap --variant=minbase "$RELEASE" "$STORE/base" ${mirror:+"$mirror"}
    # what the slim variant leaves out
    printf 'path-exclude %s\n' '/usr/share/doc/*' '/usr/share/info/*' '/usr/share/locale/*' '/usr/share/man/*' \
      >"$STORE/base/etc/dpkg/dpkg.cfg.d/slim"
    rm -rf "$STORE"/base/usr/share/{doc,info,locale,man}/* "$STORE"/base/var/{cache/apt,lib/apt/lists}/*
    container=$(buildah from scratch)
    buildah add --quiet "$container" "$STORE/base" / >/dev/null
    buildah commit --quiet "$container" "$BASE" >/dev/null
    buildah rm "$container" >/dev/null
    rm -rf "$STORE/base"
  fi
fi

# what this machine knows of package indexes and trusts goes in as secrets, and stays out of the image
cat "${PIP_CERT:-/etc/ssl/certs/ca-certificates.crt}" >"$secrets/ca"
{
  printf '[global]\ncert = /run/secrets/ca\ntimeout = %s\n' "${PIP_DEFAULT_TIMEOUT:-60}"
  for key in index-url extra-index-url trusted-host; do
    name=PIP_${key//-/_}
    name=${name^^}
    value=${!name:-$(python3 -m pip config get "global.$key" 2>/dev/null || true)}
    if [[ -n $value && $value != file:* ]]; then echo "$key = $value"; fi
  done
} >"$secrets/pip"

options=(--isolation chroot --format docker --layers --network host --tag "$TAG"
  --build-arg "BASE=$BASE" --build-arg "DEVICE=$DEVICE" --build-arg "TORCH_INDEX=${TORCH_INDEX:-}"
  --build-arg "EMBEDDED_TARGET=${EMBEDDED_TARGET:-}"
  --secret "id=pip,src=$secrets/pip" --secret "id=ca,src=$secrets/ca")
if [[ -n ${WHEELS:-} ]]; then options+=(--build-context "wheels=$(realpath "$WHEELS")"); fi
buildah build "${options[@]}" .
